"""The engine's own process, `python -m penstock.engines.openvino.worker FD PARENT`. It reads
messages, steps the model, answers.

One thread does everything, because a step holds the interpreter lock: between two steps the pipe is
read without waiting, and while there is nothing to step it is waited for. The process ends when the
pipe closes.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

from msgspec.structs import replace

from penstock.engines.base import Capabilities
from penstock.engines.beams import BEAM_PARAMETERS
from penstock.engines.openvino.devices import check_devices
from penstock.engines.openvino.model.files import TASKS_OF
from penstock.engines.openvino.options import Load, ToWorker, decode_to_worker, reason_of
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
)
from penstock.errors import EngineStartError, PenstockError

MAX_TOP_LOGPROBS = 20


def main(fd: int, parent: int) -> None:
    """Serve the pipe `fd` to the process `parent` until it closes."""
    end_with_parent(fd, parent)
    # Ctrl-C is the parent's business: it drains, then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = WorkerPipe(fd, decode_to_worker)
    try:
        load, *early = pipe.read(wait=True)
        assert isinstance(load, Load)
        try:
            model, ready = _load(load)
        except Exception as error:
            kind = error.kind if isinstance(error, PenstockError) else EngineStartError.kind
            pipe.write([Failed(0, kind, reason_of(error))])
            return
        pipe.write([ready])
        if early:  # it came with the first message
            _turn(pipe, model, early)
        while True:
            _turn(pipe, model, pipe.read(wait=not model.busy, at_most=model.pause))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _load(load: Load) -> tuple[Any, Ready]:
    check_devices(load.options)
    if load.task != "generate":
        # Other pipelines: most workers never need them.
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
        vocabulary=model.vocabulary,
    )
    if model.sees:
        # Their pipeline takes no token ids, and the graph of the second copy would.
        capabilities = replace(
            capabilities,
            tasks=capabilities.tasks - {"decide"},
            max_top_logprobs=-1,
            adapters=False,
            prompt_logprobs=False,
            logit_bias=False,
            extra=frozenset(),
            inputs=("text", "image"),
        )
    return model, Ready(capabilities, model.chat_template(), model.special_tokens())


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
    except PenstockError as error:
        return Failed.of(call.id, error)
    except Exception as error:
        return Failed(call.id, "engine_error", reason_of(error))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
