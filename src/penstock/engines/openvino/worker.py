"""The engine's own process, `python -m penstock.engines.openvino.worker FD PARENT`. It reads
messages, steps the model, answers.

One thread does everything, because a step holds the interpreter lock. Between two steps it reads
the pipe without waiting; while there is nothing to step, it waits for the pipe. The process ends
when the pipe closes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import openvino as ov
from msgspec.structs import replace

from penstock.engines.base import Capabilities
from penstock.engines.beams import BEAM_PARAMETERS
from penstock.engines.openvino.model.files import (
    MAX_TOP_LOGPROBS,
    TASKS_OF,
    check_whole,
    inputs_of,
    is_ir,
    named_templates,
    read_config,
)
from penstock.engines.openvino.options import (
    Load,
    OpenVINOOptions,
    ToWorker,
    decode_to_worker,
    failure_of,
    reason_of,
)
from penstock.engines.process import (
    Abort,
    Call,
    Failed,
    Ready,
    Reply,
    Step,
    Submit,
    ToParent,
    WorkerPipe,
    end_with_parent,
    leave_signals_to_parent,
)
from penstock.errors import EngineStartError, PenstockError


def main(fd: int, parent: int) -> None:
    """Serve the pipe `fd` to the process `parent` until it closes."""
    end_with_parent(fd, parent)
    leave_signals_to_parent()
    pipe = WorkerPipe(fd, decode_to_worker)
    try:
        load, *early = pipe.read(wait=True)
        assert isinstance(load, Load)
        try:
            model, ready = _load(load)
        except Exception as error:
            if not isinstance(error, PenstockError):  # OpenVINO's words do not say of what
                error = EngineStartError(f"'{load.path}' cannot be loaded: {reason_of(error)}")
            pipe.write([Failed(0, error.kind, reason_of(error))])
            return
        pipe.write([ready])
        if early:  # messages that came with the first one
            _turn(pipe, model, early)
        while True:
            _turn(pipe, model, pipe.read(wait=not model.busy, at_most=model.pause))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The kernel frees everything sooner, and GenAI would print requests under way as leaks.
        os._exit(0)


def _load(load: Load) -> tuple[Any, Ready]:
    check_devices(load.options)
    if is_ir(path := Path(load.path)):
        check_whole(path, load.task, load.options.tokenizer)
    if load.task != "generate":
        # Imported here: most workers never need these pipelines.
        from penstock.engines.openvino.tasks import load_task

        return load_task(load)
    from penstock.engines.openvino.lanes.generation import Generation

    model = Generation(load.path, load.options, load.context_length, load.sharing)
    capabilities = Capabilities(
        tasks=TASKS_OF["generate"],
        context_length=load.context_length,
        max_concurrency=load.options.max_num_seqs,
        structured=frozenset({"json_schema", "json_object", "regex", "grammar"}),
        max_top_logprobs=MAX_TOP_LOGPROBS,
        adapters=True,
        prefix_caching=load.options.enable_prefix_caching,
        prompt_logprobs=True,
        logit_bias=True,
        thoughts_first=True,
        triggers=True,
        extra=BEAM_PARAMETERS | {"return_token_ids"},
        inputs=("text",),
        vocabulary=model.vocabulary,
    )
    if model.sees:
        # Their pipeline takes no token ids, and the graph of the second copy would.
        capabilities = replace(
            capabilities,
            max_top_logprobs=-1,
            adapters=False,
            prompt_logprobs=False,
            logit_bias=False,
            extra=frozenset(),
            inputs=inputs_of(path, read_config(path), load.task),
        )
    template: str | dict[str, str] | None = model.chat_template()
    if isinstance(template, str) and (
        named := named_templates(Path(load.options.tokenizer or path).expanduser())
    ):
        template = {"default": template, **named}
    return model, Ready(capabilities, template, model.special_tokens())


def _turn(pipe: WorkerPipe, model: Any, arrived: list[ToWorker | Failed]) -> None:
    """Take what has arrived, then let the model make one step."""
    out: list[ToParent] = []
    submits: list[Submit] = []
    embeds: list[Call] = []
    for message in arrived:
        match message:
            case Submit():
                submits.append(message)
            case Abort(id=request_id):
                submits = [s for s in submits if s.id != request_id]
                embeds = [call for call in embeds if call.id != request_id]
                model.abort(request_id)
            case Call(method="embed"):
                embeds.append(message)
            case Call(method="decide"):
                model.begin_decision(message)
            case Call(method="rerank"):
                model.begin_rerank(message)
            case Call():
                out.append(_answer(model, message))
            case Failed():
                out.append(message)
    if submits:
        out += model.submit(submits)
    if embeds:
        out += model.begin_embeddings(embeds)
    if model.busy:
        deltas, failures = model.step()
        if deltas:
            out.append(Step(deltas))
        out += failures
        out += model.decided()
    if out:
        pipe.write(out)


def _answer(model: Any, call: Call) -> ToParent:
    try:
        return Reply(call.id, getattr(model, call.method)(*call.args))
    except Exception as error:
        return failure_of(call.id, error)


_CHOOSE = ("AUTO", "HETERO", "BATCH")
"""Devices that choose among others, as in `AUTO:GPU,CPU`. A pipeline cannot use MULTI's cache."""
_MUST_LIST = ("HETERO", "BATCH")
_KV_OPTION = "kv_cache_precision"
_KV_PROPERTIES = ("KV_CACHE_PRECISION", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION")


def check_devices(options: OpenVINOOptions) -> None:
    """Raise `EngineStartError` for a device that is not here, or a precision that it lacks."""
    core = ov.Core()
    present = core.available_devices
    check_device("device", options.device, present)
    if options.draft_device is not None:
        check_device("draft_device", options.draft_device, present)
    if options.device == "CPU":
        default = core.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
        check_precision(options, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"), default)


def check_device(option: str, device: str, present: list[str]) -> None:
    """Check the device of one option. `present` are OpenVINO's names of the devices that are here,
    such as `CPU` or `GPU.0`.
    """
    first, listing, names = device.partition(":")
    here = f"this machine has {', '.join(present)}"
    if first in _CHOOSE:
        if not names and (listing or first in _MUST_LIST):
            raise EngineStartError(
                f"{option} '{device}' names no devices, as in {first}:{present[0]}; {here}"
            )
        wanted = [name.partition("(")[0].removeprefix("-") for name in names.split(",") if name]
    else:
        wanted = [device]
    for name in wanted:
        if not any(one == name or one.partition(".")[0] == name for one in present):
            choosing = ", or a choice of them such as AUTO" if first not in _CHOOSE else ""
            raise EngineStartError(f"{option}: there is no device '{name}'; {here}{choosing}")


def check_precision(options: OpenVINOOptions, capabilities: list[str], default: str) -> None:
    """Check the precision of the KV cache: the CPU keeps it in 8, 4 or 16 bits, or in the precision
    that it computes in.

    `capabilities` are the precisions that the CPU has kernels for, by OpenVINO's names (`FP32`,
    `BF16`, `FP16`). `default` is the precision that it computes in by default.
    """
    given = {name.upper(): str(value) for name, value in options.properties.items()}
    asked = given.get("INFERENCE_PRECISION_HINT", options.inference_precision)
    needs = {"bf16": "BF16", "f16": "FP16"}.get(asked or "")
    if needs is not None and needs not in capabilities:
        raise EngineStartError(
            f"inference_precision '{asked}': this CPU does not compute in it; leave it out, which"
            f" gives {default}, or set f32"
        )
    computes = asked or default
    asked_kv = {_KV_OPTION: options.kv_cache_precision} | {
        f"properties.{name}": given[name] for name in _KV_PROPERTIES if name in given
    }
    takes = ", ".join(dict.fromkeys((computes, "f16", "u8")))
    for name, value in asked_kv.items():
        if value in ("f32", "bf16") and value != computes:
            other = "; f32 needs inference_precision f32" if value == "f32" else ""
            raise EngineStartError(
                f"{name} '{value}': the CPU computes in {computes}, so its cache is in {takes} or"
                f" u4{other}"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
