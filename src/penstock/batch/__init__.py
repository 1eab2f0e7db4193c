"""Batch: a language model over every row of a data set, in jobs and processors."""

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers; typing itself takes longer to import than this face
if TYPE_CHECKING:
    from penstock.batch.decisions.calibrate import acalibrate as acalibrate
    from penstock.batch.evaluation import aevaluate as aevaluate
    from penstock.batch.job.execution import JobInterrupted as JobInterrupted
    from penstock.batch.job.forecast import Forecast as Forecast
    from penstock.batch.job.job import Job as Job
    from penstock.batch.job.result import Counts as Counts, RunResult as RunResult
    from penstock.batch.pipeline.builder import (
        ProcessorBuilder as ProcessorBuilder,
        build_processor as build_processor,
    )
    from penstock.batch.pipeline.configs import (
        ChatTemplateStageConfig as ChatTemplateStageConfig,
        DetokenizeStageConfig as DetokenizeStageConfig,
        HttpRequestProcessorConfig as HttpRequestProcessorConfig,
        HttpRequestStageConfig as HttpRequestStageConfig,
        OpenVINOEngineProcessorConfig as OpenVINOEngineProcessorConfig,
        PrepareMultimodalStageConfig as PrepareMultimodalStageConfig,
        ProcessorConfig as ProcessorConfig,
        ServeDeploymentProcessorConfig as ServeDeploymentProcessorConfig,
        SGLangEngineProcessorConfig as SGLangEngineProcessorConfig,
        TokenizerStageConfig as TokenizerStageConfig,
        vLLMEngineProcessorConfig as vLLMEngineProcessorConfig,
    )
    from penstock.batch.pipeline.processor import Processor as Processor, RowStream as RowStream
    from penstock.batch.stages.base import StatefulStage as StatefulStage
    from penstock.engines.registry import engines as engines, stop_engines as stop_engines
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__,
        {
            "penstock.batch.decisions.calibrate": ("acalibrate",),
            "penstock.batch.evaluation": ("aevaluate",),
            "penstock.batch.pipeline.builder": ("ProcessorBuilder", "build_processor"),
            "penstock.batch.pipeline.configs": (
                "ChatTemplateStageConfig",
                "DetokenizeStageConfig",
                "HttpRequestProcessorConfig",
                "HttpRequestStageConfig",
                "OpenVINOEngineProcessorConfig",
                "PrepareMultimodalStageConfig",
                "ProcessorConfig",
                "ServeDeploymentProcessorConfig",
                "SGLangEngineProcessorConfig",
                "TokenizerStageConfig",
                "vLLMEngineProcessorConfig",
            ),
            "penstock.batch.job.execution": ("JobInterrupted",),
            "penstock.batch.job.job": ("Job",),
            "penstock.batch.job.forecast": ("Forecast",),
            "penstock.batch.job.result": ("Counts", "RunResult"),
            "penstock.batch.stages.base": ("StatefulStage",),
            "penstock.batch.pipeline.processor": ("Processor", "RowStream"),
            "penstock.engines.registry": ("engines", "stop_engines"),
        },
    )
