"""The configurations of `ray.data.llm`, with its columns on."""

from __future__ import annotations

from penstock.batch.pipeline import configs
from penstock.batch.pipeline.builder import build_processor

build_llm_processor = build_processor
"""Its name in older versions of Ray."""


class HttpRequestProcessorConfig(configs.HttpRequestProcessorConfig, kw_only=True):
    """As `penstock.batch.HttpRequestProcessorConfig`, with Ray's column of errors."""

    ray_columns: bool = True


class vLLMEngineProcessorConfig(configs.vLLMEngineProcessorConfig, kw_only=True):
    """As `penstock.batch.vLLMEngineProcessorConfig`, with Ray's columns."""

    ray_columns: bool = True


class SGLangEngineProcessorConfig(configs.SGLangEngineProcessorConfig, kw_only=True):
    """As `penstock.batch.SGLangEngineProcessorConfig`, with Ray's columns."""

    ray_columns: bool = True


class OpenVINOEngineProcessorConfig(configs.OpenVINOEngineProcessorConfig, kw_only=True):
    """As `penstock.batch.OpenVINOEngineProcessorConfig`, with Ray's columns. Ray has no such."""

    ray_columns: bool = True


class ServeDeploymentProcessorConfig(configs.ServeDeploymentProcessorConfig, kw_only=True):
    """As `penstock.batch.ServeDeploymentProcessorConfig`, with Ray's columns."""

    ray_columns: bool = True
