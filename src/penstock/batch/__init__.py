"""Batch: jobs and processors that run a language model over every row of a data set, in bounded memory."""

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers; typing itself takes longer to import than this face
if TYPE_CHECKING:
    from penstock.batch.builder import ProcessorBuilder as ProcessorBuilder, build_processor as build_processor
    from penstock.batch.configs import (
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
    from penstock.batch.counts import Counts as Counts
    from penstock.batch.interrupts import JobInterrupted as JobInterrupted
    from penstock.batch.job import Job as Job
    from penstock.batch.preflight import Forecast as Forecast
    from penstock.batch.processor import Processor as Processor
    from penstock.batch.result import RunResult as RunResult
    from penstock.batch.stages.base import StatefulStage as StatefulStage
    from penstock.batch.stream import RowStream as RowStream
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__,
        {
            "penstock.batch.builder": ("ProcessorBuilder", "build_processor"),
            "penstock.batch.configs": (
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
            "penstock.batch.counts": ("Counts",),
            "penstock.batch.interrupts": ("JobInterrupted",),
            "penstock.batch.job": ("Job",),
            "penstock.batch.preflight": ("Forecast",),
            "penstock.batch.processor": ("Processor",),
            "penstock.batch.result": ("RunResult",),
            "penstock.batch.stages.base": ("StatefulStage",),
            "penstock.batch.stream": ("RowStream",),
        },
    )
