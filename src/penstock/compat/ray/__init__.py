"""The names of `ray.data.llm` and `ray.serve.llm` in one place, with Ray's columns on.

A program keeps its code and changes its import: `from penstock.compat.ray import …`. What differs
from Ray is in docs/from-ray.md. The submodules of `ray.serve.llm` are those of `penstock.serve`.
"""

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers
if TYPE_CHECKING:
    from penstock.batch.pipeline.builder import (
        ProcessorBuilder as ProcessorBuilder,
        build_processor as build_processor,
    )
    from penstock.batch.pipeline.configs import (
        ChatTemplateStageConfig as ChatTemplateStageConfig,
        DetokenizeStageConfig as DetokenizeStageConfig,
        HttpRequestStageConfig as HttpRequestStageConfig,
        PrepareMultimodalStageConfig as PrepareMultimodalStageConfig,
        TokenizerStageConfig as TokenizerStageConfig,
    )
    from penstock.batch.pipeline.processor import Processor as Processor
    from penstock.batch.stages.base import StatefulStage as StatefulStage
    from penstock.compat.ray.processors import (
        HttpRequestProcessorConfig as HttpRequestProcessorConfig,
        OpenVINOEngineProcessorConfig as OpenVINOEngineProcessorConfig,
        ProcessorConfig as ProcessorConfig,
        ServeDeploymentProcessorConfig as ServeDeploymentProcessorConfig,
        SGLangEngineProcessorConfig as SGLangEngineProcessorConfig,
        vLLMEngineProcessorConfig as vLLMEngineProcessorConfig,
    )
    from penstock.llm_config import (
        CloudMirrorConfig as CloudMirrorConfig,
        LLMConfig as LLMConfig,
        LoraConfig as LoraConfig,
        ModelLoadingConfig as ModelLoadingConfig,
    )
    from penstock.ray.builders import (
        build_dp_deployment as build_dp_deployment,
        build_dp_openai_app as build_dp_openai_app,
        build_llm_deployment as build_llm_deployment,
        build_openai_app as build_openai_app,
        build_pd_openai_app as build_pd_openai_app,
    )
    from penstock.serve.config.serving_args import LLMServingArgs as LLMServingArgs
    from penstock.serve.models.server import LLMServer as LLMServer
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__,
        {
            "penstock.batch.pipeline.builder": ("ProcessorBuilder", "build_processor"),
            "penstock.batch.pipeline.configs": (
                "ChatTemplateStageConfig",
                "DetokenizeStageConfig",
                "HttpRequestStageConfig",
                "PrepareMultimodalStageConfig",
                "TokenizerStageConfig",
            ),
            "penstock.batch.pipeline.processor": ("Processor",),
            "penstock.batch.stages.base": ("StatefulStage",),
            "penstock.compat.ray.processors": (
                "HttpRequestProcessorConfig",
                "OpenVINOEngineProcessorConfig",
                "ProcessorConfig",
                "ServeDeploymentProcessorConfig",
                "SGLangEngineProcessorConfig",
                "vLLMEngineProcessorConfig",
            ),
            "penstock.llm_config": (
                "CloudMirrorConfig",
                "LLMConfig",
                "LoraConfig",
                "ModelLoadingConfig",
            ),
            "penstock.ray.builders": (
                "build_dp_deployment",
                "build_dp_openai_app",
                "build_llm_deployment",
                "build_openai_app",
                "build_pd_openai_app",
            ),
            "penstock.serve.config.serving_args": ("LLMServingArgs",),
            "penstock.serve.models.server": ("LLMServer",),
        },
    )
