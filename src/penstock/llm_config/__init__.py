"""`LLMConfig`: one model, how to load it, and how to serve it."""

from penstock.llm_config.engine_config import (
    EngineConfig as EngineConfig,
    Parallelism as Parallelism,
    accelerator_name as accelerator_name,
    parallelism as parallelism,
)
from penstock.llm_config.model import (
    AcceleratorConfig as AcceleratorConfig,
    AutoscalingConfig as AutoscalingConfig,
    Bundle as Bundle,
    CallbackConfig as CallbackConfig,
    CloudMirrorConfig as CloudMirrorConfig,
    DeploymentConfig as DeploymentConfig,
    LLMConfig as LLMConfig,
    LoraConfig as LoraConfig,
    ModelLoadingConfig as ModelLoadingConfig,
    PlacementGroupConfig as PlacementGroupConfig,
)
