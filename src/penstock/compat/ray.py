"""The names of `ray.data.llm` and `ray.serve.llm` in one place, with Ray's columns on.

A program keeps its code and changes its import: `from penstock.compat.ray import …`. What differs
from Ray is in docs/from-ray-data.md and docs/from-ray-serve.md. The submodules of `ray.serve.llm`
are those of `penstock.serve`.
"""

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers
if TYPE_CHECKING:
    from penstock.batch import (
        ChatTemplateStageConfig as ChatTemplateStageConfig,
        DetokenizeStageConfig as DetokenizeStageConfig,
        HttpRequestStageConfig as HttpRequestStageConfig,
        PrepareMultimodalStageConfig as PrepareMultimodalStageConfig,
        Processor as Processor,
        ProcessorBuilder as ProcessorBuilder,
        ProcessorConfig as ProcessorConfig,
        StatefulStage as StatefulStage,
        TokenizerStageConfig as TokenizerStageConfig,
        build_processor as build_processor,
    )
    from penstock.compat.processors import (
        HttpRequestProcessorConfig as HttpRequestProcessorConfig,
        OpenVINOEngineProcessorConfig as OpenVINOEngineProcessorConfig,
        ServeDeploymentProcessorConfig as ServeDeploymentProcessorConfig,
        SGLangEngineProcessorConfig as SGLangEngineProcessorConfig,
        build_llm_processor as build_llm_processor,
        vLLMEngineProcessorConfig as vLLMEngineProcessorConfig,
    )
    from penstock.serve import (
        CloudMirrorConfig as CloudMirrorConfig,
        LLMConfig as LLMConfig,
        LLMServer as LLMServer,
        LLMServingArgs as LLMServingArgs,
        LoraConfig as LoraConfig,
        ModelLoadingConfig as ModelLoadingConfig,
        build_dp_deployment as build_dp_deployment,
        build_dp_openai_app as build_dp_openai_app,
        build_llm_deployment as build_llm_deployment,
        build_openai_app as build_openai_app,
        build_pd_openai_app as build_pd_openai_app,
    )
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__,
        {
            "penstock.batch": (
                "ChatTemplateStageConfig",
                "DetokenizeStageConfig",
                "HttpRequestStageConfig",
                "PrepareMultimodalStageConfig",
                "Processor",
                "ProcessorBuilder",
                "ProcessorConfig",
                "StatefulStage",
                "TokenizerStageConfig",
                "build_processor",
            ),
            "penstock.compat.processors": (
                "HttpRequestProcessorConfig",
                "OpenVINOEngineProcessorConfig",
                "ServeDeploymentProcessorConfig",
                "SGLangEngineProcessorConfig",
                "build_llm_processor",
                "vLLMEngineProcessorConfig",
            ),
            "penstock.serve": (
                "CloudMirrorConfig",
                "LLMConfig",
                "LLMServer",
                "LLMServingArgs",
                "LoraConfig",
                "ModelLoadingConfig",
                "build_dp_deployment",
                "build_dp_openai_app",
                "build_llm_deployment",
                "build_openai_app",
                "build_pd_openai_app",
            ),
        },
    )
