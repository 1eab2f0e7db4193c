"""Reads serving configurations from YAML files.

A file has one of five forms: a list of models; a mapping with `llm_configs`; a mapping with
`prefill_config` and `decode_config`; Ray Serve's file with `applications`, whose `args` are such
mappings; and a single model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.config import import_object, read_yaml
from penstock.errors import ConfigError
from penstock.serve.config.pd_serving_args import PDServingArgs
from penstock.serve.config.serving_args import LLMServingArgs

PATTERNS = {"build_dp_openai_app": "penstock.serve.models.data_parallel:grouped"}
"""Name of an application's builder, the last part of its `import_path` → the kind of its `args`."""


def load_serving_args(path: str | Path) -> LLMServingArgs:
    """Read a YAML file in any of the forms above. The models of several applications are merged.

    Raises `ConfigError` naming the file and the field.
    """
    file = Path(path)
    content = read_yaml(file)
    try:
        if isinstance(content, list):
            return LLMServingArgs.from_dict({"llm_configs": content}, file.parent)
        if not isinstance(content, Mapping):
            raise ConfigError(
                "must hold a list of models, or a mapping with 'llm_configs' or 'applications'"
            )
        if "applications" in content:
            return _of_applications(content["applications"], file.parent)
        if "model_loading_config" in content:
            return LLMServingArgs.from_dict({"llm_configs": [content]}, file.parent)
        return read_args(content, file.parent)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}", value=error.value) from None


def read_args(
    given: Mapping[str, Any], folder: Path | None = None, where: str = ""
) -> LLMServingArgs:
    """Read a mapping with `llm_configs`, or with `prefill_config` and `decode_config`. Raises
    `ConfigError`.
    """
    if "prefill_config" in given or "decode_config" in given:
        return PDServingArgs.from_dict(given, folder, where).serving_args()
    return LLMServingArgs.from_dict(given, folder, where)


def _of_applications(applications: Any, folder: Path) -> LLMServingArgs:
    """The models of a Ray Serve file. Its other fields (ports, routes, other import paths) are
    Ray's, and ignored.
    """
    if not isinstance(applications, list) or not applications:
        raise ConfigError(
            "must be a list of at least one application", field="applications", value=applications
        )
    found = []
    for number, application in enumerate(applications):
        where = f"applications[{number}].args"
        args = application.get("args") if isinstance(application, Mapping) else None
        if not isinstance(args, Mapping):
            raise ConfigError("must be a mapping with 'llm_configs'", field=where, value=args)
        pattern = PATTERNS.get(
            str(application.get("import_path", "")).replace(":", ".").rpartition(".")[2]
        )
        made = read_args(args, folder, where)
        found.append(made if pattern is None else import_object(pattern, "import_path")(made))
    return LLMServingArgs(
        llm_configs=[config for args in found for config in args.llm_configs],
        ingress_cls_config=found[0].ingress_cls_config,
        ingress_deployment_config=found[0].ingress_deployment_config,
    )
