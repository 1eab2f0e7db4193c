"""The flags of `vllm serve` that mean the same here: options of the engine, several values after a
flag, and what to do instead of a flag that is not honoured. docs/serving.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import click

from penstock.cli.options import json_object
from penstock.errors import ConfigError

_SEVERAL = frozenset({"--served-model-name", "--api-key", "--lora-modules"})
_HARMLESS = frozenset(
    {
        *("--enable-auto-tool-choice", "--enable-server-load-tracking"),
        *("--enable-log-requests", "--no-enable-log-requests", "--disable-log-requests"),
        *("--disable-log-stats", "--disable-uvicorn-access-log"),
        *("--enable-prompt-tokens-details", "--enable-tokenizer-info-endpoint"),
        *("--disable-frontend-multiprocessing", "--enable-request-id-headers"),
    }
)
"""Flags without a value that ask for what is so anyway, or is of no consequence here."""
_REFUSED = {
    "--middleware": "a class of your own goes into ingress_cls_config of a configuration file",
    "--config": "give penstock's own configuration file as CONFIG.yaml",
    "--headless": "a cluster is served with --runtime ray",
    "--api-server-count": "one process serves; --runtime ray has several",
    "--data-parallel-backend": "a cluster is served with --runtime ray",
    "--response-role": "answers are the assistant's",
    "--enable-force-include-usage": "clients ask by stream_options.include_usage",
    "--sse-keep-alive-interval": "set it at the proxy in front of the server",
    "--fingerprint-mode": "answers have no system_fingerprint",
    "--enable-log-outputs": "the console keeps what requests say, if it is told to",
    "--enable-ssl-refresh": "restart the server after a change of its certificates",
    "--ssl-ciphers": "put a proxy in front of the server",
    "--disable-fastapi-docs": "keys protect /docs and /openapi.json: --api-key",
    "--uvicorn-log-level": "use --log-level",
    "--log-config-file": "use --log-format and --log-level",
    "--max-log-len": "no prompts are logged",
    "--tool-server": "no tools are run here",
}


class VllmCommand(click.Command):
    """A command that reads its arguments as vLLM's parser does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, as_options(args, self.get_params(ctx)))


def as_options(args: Sequence[str], params: Iterable[click.Parameter]) -> list[str]:
    """The arguments with `--a_b` as `--a-b`, and each of several values after a flag of its own.
    `params` are those of the command.

    Before MODEL such a flag takes one value: the next could be MODEL. Raises `ConfigError` for a
    flag that is not honoured.
    """
    switches = {
        name
        for one in params
        if isinstance(one, click.Option) and one.is_flag
        for name in (*one.opts, *one.secondary_opts)
    }
    options: list[str] = []
    left = list(args)
    model_seen = False
    while left:
        arg = left.pop(0)
        if not arg.startswith("-") or arg == "-":
            model_seen = model_seen or not _is_value(options, switches)
            options.append(arg)
            continue
        name, equals, value = arg.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-")
        if name in _REFUSED:
            raise ConfigError("is not a flag of penstock serve", field=name, hint=_REFUSED[name])
        if name in _HARMLESS:
            continue
        if name not in _SEVERAL or equals:
            options.append(f"{name}{equals}{value}")
            continue
        values = 0
        while left and not left[0].startswith("-") and (model_seen or not values):
            options += [name, left.pop(0)]
            values += 1
        if not values:
            options.append(name)  # click says that a value is missing
    return options


def _is_value(options: Sequence[str], switches: Collection[str]) -> bool:
    """Whether the next argument is a value of the last one."""
    if not options or not options[-1].startswith("-") or "=" in options[-1]:
        return False
    return options[-1] not in switches


# Options of engines
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


class _Tokens(click.ParamType):  # type: ignore[type-arg]
    """A number of tokens, also as 32k (thousands) and 32K (times 1,024), as vLLM has them."""

    name = "integer"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        text = str(value)
        unit = _UNITS.get(text[-1:], 1)
        try:
            return int(float(text if unit == 1 else text[:-1]) * unit)
        except ValueError:
            self.fail("must be a number", param, ctx)


_TOKENS = _Tokens()
_WHOLE, _NUMBER, _TEXT, _JSON, _SWITCH = int, float, str, "json", "switch"
_ENGINE: dict[Any, tuple[str, ...]] = {
    _TOKENS: (
        "--max-model-len",
        "--max-num-batched-tokens",
        "--kv-cache-memory-bytes",
    ),
    _WHOLE: (
        "--max-num-seqs",
        "-tp --tensor-parallel-size",
        "-pp --pipeline-parallel-size",
        "-dp --data-parallel-size",
        "--seed",
        "--block-size",
        "--max-loras",
        "--max-cpu-loras",
        "--max-lora-rank",
        "--max-logprobs",
    ),
    _NUMBER: ("--gpu-memory-utilization", "--cpu-offload-gb"),
    _TEXT: (
        "--dtype",
        "-q --quantization",
        "--kv-cache-dtype",
        "--load-format",
        "--tokenizer",
        "--tokenizer-mode",
        "--revision",
        "--tokenizer-revision",
        "--code-revision",
        "--download-dir",
        "--chat-template",
        "--chat-template-content-format",
        "--tool-call-parser",
        "--tool-parser-plugin",
        "--tool-strict-level",
        "--reasoning-parser",
        "--reasoning-parser-plugin",
        "--generation-config",
        "--runner",
        "--convert",
        "--scheduling-policy",
        "--distributed-executor-backend",
    ),
    _JSON: (
        "--override-generation-config",
        "--hf-overrides",
        "--limit-mm-per-prompt",
        "--mm-processor-kwargs",
        "--speculative-config",
        "--compilation-config",
        "--kv-transfer-config",
        "--default-chat-template-kwargs",
        "--structured-outputs-config",
    ),
    _SWITCH: (
        "--enforce-eager",
        "--trust-remote-code",
        "--enable-prefix-caching",
        "--enable-chunked-prefill",
        "--enable-lora",
        "--enable-expert-parallel",
        "--enable-sleep-mode",
        "--async-scheduling",
        "--exclude-tools-when-tool-choice-none",
        "--return-tokens-as-token-ids",
        "--trust-request-mm-kwargs",
    ),
}
ENGINE_OPTIONS = tuple(
    flags.split()[-1].removeprefix("--").replace("-", "_")
    for group in _ENGINE.values()
    for flags in group
)
"""The names of the options, which are vLLM's own."""


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command vLLM's flags for engines; they are not in its `--help`."""
    for kind, group in _ENGINE.items():
        for flags in group:
            names = flags.split()
            if kind is _SWITCH:
                option = click.option(
                    f"{flags}/{flags.replace('--', '--no-', 1)}", default=None, hidden=True
                )
            else:
                plain = str if kind is _JSON else kind
                option = click.option(*names, type=plain, default=None, hidden=True)
            command = option(command)
    return command


_SGLANG = {
    "max_model_len": "context_length",
    "max_num_seqs": "max_running_requests",
    "max_num_batched_tokens": "chunked_prefill_size",
    "tensor_parallel_size": "tp_size",
    "pipeline_parallel_size": "pp_size",
    "data_parallel_size": "dp_size",
    "gpu_memory_utilization": "mem_fraction_static",
    "seed": "random_seed",
    "block_size": "page_size",
    "max_loras": "max_loras_per_batch",
    "tokenizer": "tokenizer_path",
    "hf_overrides": "json_model_override_args",
}
"""How SGLang calls what means the same."""
_PRECISIONS = {
    **{"float32": "f32", "float": "f32", "float16": "f16", "half": "f16"},
    "bfloat16": "bf16",
}
_NOTHING: dict[str, tuple[Any, ...]] = {
    "dtype": ("auto",),
    "kv_cache_dtype": ("auto",),
    "load_format": ("auto", "openvino", "safetensors", "gguf"),
    "tokenizer_mode": ("auto", "hf"),
    "chat_template_content_format": ("auto", "string"),
    "distributed_executor_backend": ("mp", "uni"),
    "runner": ("auto",),
    "convert": ("auto",),
    "scheduling_policy": ("fcfs",),
    "generation_config": ("vllm",),
    "exclude_tools_when_tool_choice_none": (True,),
    "return_tokens_as_token_ids": (False,),
    "tool_strict_level": ("auto",),
    "trust_request_mm_kwargs": (False,),
    "tensor_parallel_size": (1,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "cpu_offload_gb": (0.0,),
    "enforce_eager": (True, False),
    "trust_remote_code": (True, False),
    "enable_lora": (True, False),
    "enable_sleep_mode": (True, False),
    "enable_chunked_prefill": (True,),
    "enable_expert_parallel": (False,),
    "async_scheduling": (True, False),
}
"""Values that ask for what an engine without the option does in any case."""
_HINTS = {
    "gpu_memory_utilization": "--kv-cache-memory-bytes bounds the cache.",
    "generation_config": (
        "A request that states no sampling parameter gets OpenAI's default; vllm says so."
    ),
    "return_tokens_as_token_ids": "return_token_ids of a request gives the ids.",
    "seed": "Requests carry seeds; --deterministic makes the others repeatable.",
    "quantization": "A model is quantized when it is converted.",
    "dtype": "It is float32, float16, bfloat16 or auto here.",
    "kv_cache_dtype": 'Use --engine-kwargs \'{"kv_cache_precision": "u8"}\'.',
    "speculative_config": (
        'Use --engine-kwargs with "prompt_lookup" or "draft_model", as docs/engines.md has it.'
    ),
    "tensor_parallel_size": "It runs on one device; --engine vllm has several.",
    "revision": "Name a directory with the files of that revision.",
    "max_lora_rank": "Adapters of any rank are taken.",
}


def engine_kwargs(engine: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of `ENGINE_OPTIONS` that were given, as `engine_kwargs` of the engine.

    Raises `ConfigError` for one that the engine cannot honour.
    """
    flags = {name: given[name] for name in ENGINE_OPTIONS if given.get(name) is not None}
    for flag in _ENGINE[_JSON]:
        name = flag.removeprefix("--").replace("-", "_")
        if name in flags:
            flags[name] = json_object(flags[name], flag)
    if engine == "vllm":
        return flags
    if engine == "sglang":
        return {_SGLANG.get(name, name): value for name, value in flags.items()}
    options: dict[str, Any] = {}
    known = _known(engine)
    for name, value in flags.items():
        if name in known:
            options[name] = value
        elif engine == "openvino" and name == "dtype" and value in _PRECISIONS:
            options["inference_precision"] = _PRECISIONS[value]
        elif value not in _NOTHING.get(name, ()):
            hint = (
                "The server that it asks has such options."
                if engine == "remote"
                else _HINTS.get(name, "--engine vllm has it.")
            )
            raise ConfigError(
                f"is nothing that the {engine} engine can do",
                field=f"--{name.replace('_', '-')}",
                value=value,
                hint=hint,
            )
    return options


def _known(engine: str) -> frozenset[str]:
    """The option names of an engine that lists them in a structure."""
    options: Any
    if engine == "openvino":
        from penstock.engines.openvino.options import OpenVINOOptions as options
    elif engine == "simulated":
        from penstock.engines.simulated.options import SimulatedOptions as options
    elif engine == "remote":
        from penstock.engines.remote.options import RemoteOptions as options
    else:
        return frozenset(ENGINE_OPTIONS)  # a user's engine: it says itself what it lacks
    return frozenset(options.__struct_fields__)


def lora_modules(given: Sequence[str]) -> dict[str, str]:
    """`name=path`, or vLLM's JSON `{"name": …, "path": …}`, as names and paths. Raises
    `ConfigError`.
    """
    adapters = {}
    for text in given:
        name, _, path = text.partition("=")
        if text.lstrip().startswith("{"):
            module = json_object(text, "--lora-modules") or {}
            name, path = str(module.get("name", "")), str(module.get("path", ""))
        if not name or not path:
            raise ConfigError("must be NAME=PATH", field="--lora-modules", value=text)
        adapters[name] = path
    return adapters


def origins(given: str | None) -> tuple[str, ...]:
    """vLLM's `--allowed-origins`, a JSON list. Raises `ConfigError`."""
    if given is None:
        return ()
    from penstock.parsing import decode_json  # imported only where it is given

    try:
        found = decode_json(given)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ConfigError("must be a JSON list of texts", field="--allowed-origins", value=given)
    return tuple(found)
