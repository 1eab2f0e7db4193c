"""Serving models: servers, handles and the OpenAI-compatible ingress."""

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers
if TYPE_CHECKING:
    from penstock.llm_config.model import (
        CloudMirrorConfig as CloudMirrorConfig,
        LLMConfig as LLMConfig,
        LoraConfig as LoraConfig,
        ModelLoadingConfig as ModelLoadingConfig,
    )
    from penstock.ray.builders import (
        build_dev_openai_app as build_dev_openai_app,
        build_dp_deployment as build_dp_deployment,
        build_dp_openai_app as build_dp_openai_app,
        build_llm_deployment as build_llm_deployment,
        build_openai_app as build_openai_app,
        build_pd_openai_app as build_pd_openai_app,
        served_model as served_model,
    )
    from penstock.serve.api.ingress import OpenAiIngress as OpenAiIngress
    from penstock.serve.compat.server import LLMServer as LLMServer
    from penstock.serve.config.serving_args import (
        IngressClsConfig as IngressClsConfig,
        LLMServingArgs as LLMServingArgs,
        PDServingArgs as PDServingArgs,
        load_serving_args as load_serving_args,
    )
    from penstock.serve.models.data_parallel import DPServer as DPServer
    from penstock.serve.models.handle import (
        ModelCard as ModelCard,
        ModelHandle as ModelHandle,
        ModelState as ModelState,
    )
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__,
        {
            "penstock.llm_config.model": (
                "CloudMirrorConfig",
                "LLMConfig",
                "LoraConfig",
                "ModelLoadingConfig",
            ),
            "penstock.serve.api.ingress": ("OpenAiIngress",),
            "penstock.ray.builders": (
                "build_dev_openai_app",
                "build_dp_deployment",
                "build_dp_openai_app",
                "build_llm_deployment",
                "build_openai_app",
                "build_pd_openai_app",
                "served_model",
            ),
            "penstock.serve.models.data_parallel": ("DPServer",),
            "penstock.serve.models.handle": ("ModelCard", "ModelHandle", "ModelState"),
            "penstock.serve.compat.server": ("LLMServer",),
            "penstock.serve.config.serving_args": (
                "IngressClsConfig",
                "LLMServingArgs",
                "PDServingArgs",
                "load_serving_args",
            ),
        },
    )
