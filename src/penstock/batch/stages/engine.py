"""The engine stage: each row becomes a request, and its answer becomes columns."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from penstock.batch.pipeline.pipeline import Asked, Attempts, Tries, rolling
from penstock.batch.rows.repair import Repair, Request, collect, invalid_json, misfit
from penstock.batch.rows.row import Outcome
from penstock.batch.stages import tasks
from penstock.batch.stages.base import MAPPING, StatefulStage
from penstock.batch.stages.ray_columns import RayColumns, logprobs_by_id
from penstock.batch.stages.text import conversation, token_ids, without_reasoning
from penstock.engines.quarantine import digest_of
from penstock.engines.registry import EngineSource
from penstock.engines.supervisor import Supervisor
from penstock.errors import AnswerFormError, ConfigError, RequestError
from penstock.openai.constraints import parse_response_format
from penstock.openai.media.parts import media_in
from penstock.openai.requests import begun_by_assistant
from penstock.openai.responses import Answers, ToolCall, token_logprobs, tool_call_list
from penstock.types import (
    ChatRequest,
    CompletionRequest,
    Delta,
    StructuredOutput,
    TokenLogprob,
    Usage,
)


class EngineRequests:
    """Sends rows to the processor's engine, and retries failures that may pass.

    `task` is that of the processor's configuration. `chat`: rows with `messages` are conversations,
    which the engine fills into its chat template, or into `template`. Another row has a `prompt` or
    a `tokenized_prompt`; `templated`: an earlier stage has made it with the template. `text`:
    whether answers come as text too; None: unless the row's `detokenize` is false. `lora_path` is
    the folder of adapters. `most` limits the rows in flight. `repair` says when a row is asked
    again with another request. `ray_columns` adds Ray's columns. While `ending` is set, nothing is
    tried again.
    """

    _supervisor: Supervisor
    _attempts: Attempts

    def __init__(
        self,
        source: EngineSource,
        *,
        task: str = "generate",
        chat: bool = True,
        templated: bool = False,
        text: bool | None = True,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        lora_path: str | None = None,
        most: int | None = None,
        max_attempts: int = 3,
        repair: Repair | None = None,
        ray_columns: bool = False,
    ) -> None:
        self.most_in_flight = most or 1
        self._source = source
        self._task = task
        self._chat = chat
        self._templated = templated
        self._text = text
        self._template = template
        self._variables = dict(variables or {})
        self._lora_path = lora_path
        self._most = most
        self._max_attempts = max_attempts
        self.repair = repair or Repair()
        self._more = RayColumns() if ray_columns else None
        self._stack = contextlib.AsyncExitStack()
        self.ending = False

    async def start(self) -> None:
        """Start the engine, unless it runs."""
        supervisor = await self._stack.enter_async_context(self._source.running(per_worker=True))
        self._supervisor = supervisor
        capabilities = supervisor.engine.capabilities
        self._check_task(capabilities.tasks, supervisor.engine.name)
        self._attempts = Attempts(supervisor, lambda: not self.ending, most=self._max_attempts)
        self.most_in_flight = self._most or rolling(capabilities)

    async def stop(self) -> None:
        """Let go of the engine."""
        await self._stack.aclose()

    async def process(self, row: dict[str, Any]) -> dict[str, Any]:
        tasks.check_columns(row)
        engine = self._supervisor.engine
        adapter = None if row.get("model") is None else self._adapter(row)
        began = time.perf_counter()
        if self._task == "generate":
            request = self._request(row, adapter[0] if adapter else None)
            # A row's own `prompt` stays as it is: only the engine knows the prompt that it makes.
            text = self._text
            if text is None:
                text = (row.get("sampling_params") or {}).get("detokenize") is not False
            read = _checked(request.sampling.structured) if self.repair.json_attempts > 1 else None
            form = _ASK if self._more is None else _ASK_AS_RAY
            ask = partial(self.repair.answer, request, engine, form, read)
            outcome = await self._attempts.answer(
                ask, adapter, Tries(), partial(digest_of, request)
            )
            columns = _columns(outcome, row.get("prompt"), text=text)
            if self._more is not None:
                columns |= await self._more.of_answer(engine, request, columns, began)
        else:
            read_columns = (*tasks.COLUMNS[self._task], "prompt", "tokenized_prompt", "messages")
            asked = self._task, {name: row.get(name) for name in read_columns}
            cuts, chat = self.repair.truncate, self._seen(row)
            act = partial(tasks.request(self._task, row, truncate=cuts, chat=chat), engine)
            columns = await self._attempts.answer(act, adapter, Tries(), partial(digest_of, asked))
            if self._more is not None:
                columns = await self._more.of_vector(engine, row, columns)
        columns["time_taken_llm"] = time.perf_counter() - began
        return columns

    def asked(self, row: Mapping[str, Any]) -> Asked | None:
        """What the engine would be asked for a row; None if its text is not to be continued.

        Raises `RequestError`.
        """
        if self._task != "generate":
            return None
        return Asked(self._supervisor.engine, self._request(row, None), self.repair)

    def _request(self, row: Mapping[str, Any], adapter: str | None) -> Request:
        """The request of a row whose text is to be continued. Raises `RequestError`."""
        sampling, n = tasks.sampling_of(row.get("sampling_params"))
        if row.get("response_format") is not None:
            if sampling.structured is not None:
                raise RequestError(
                    "give response_format or structured outputs, not both", param="response_format"
                )
            sampling = msgspec.structs.replace(
                sampling, structured=parse_response_format(row["response_format"])
            )
        tools = row.get("tools")
        if tools is not None:
            tools = list(tools) or None
        # Only a conversation can be shortened without harm to the template, or be continued.
        whole = tools or not self._templated or row.get("prompt") is None or self.repair != Repair()
        if self._chat and row.get("messages") is not None and whole:
            return self._conversation(
                row,
                sampling=sampling,
                n=n,
                tools=tools,
                tool_choice=row.get("tool_choice"),
                adapter=adapter,
            )
        given = row.get("tokenized_prompt")
        prompt = row.get("prompt") if given is None else token_ids(given)
        if not isinstance(prompt, str | list):
            asked = "'messages' or 'prompt'" if self._chat else "'prompt' or 'tokenized_prompt'"
            raise RequestError(f"the row has no column {asked} to be answered", param="prompt")
        filled = self._templated and row.get("messages") is not None
        return CompletionRequest(
            prompt, sampling, n, adapter=adapter, stream=False, special_tokens=not filled
        )

    def _conversation(self, row: Mapping[str, Any], **others: Any) -> ChatRequest:
        messages = conversation(row)
        continues = begun_by_assistant(messages)
        return ChatRequest(
            messages=messages,
            chat_template=self._template,
            chat_template_kwargs={**self._variables, **(row.get("chat_template_kwargs") or {})},
            stream=False,
            continue_final_message=continues,
            add_generation_prompt=not continues,
            **others,
        )

    def _seen(self, row: Mapping[str, Any]) -> ChatRequest | None:
        """The conversation of a row to embed, if it has one that only a model that sees takes."""
        if self._task != "embed" or row.get("messages") is None:
            return None
        chat = self._conversation(row)
        sees = "image" in self._supervisor.engine.capabilities.inputs
        return chat if sees or media_in(chat.messages) else None

    def _adapter(self, row: Mapping[str, Any]) -> tuple[str, str | None] | None:
        """The LoRA adapter that the row's `model` names, and its path; None for the base model."""
        name = row.get("model")
        if name == "" or name == self._source.model_source:
            return None
        if not isinstance(name, str):
            raise RequestError(f"model must be a text, not a {type(name).__name__}", param="model")
        base = f"{self._source.model_source}:"
        name = name.removeprefix(base)
        if self._lora_path is not None and not os.path.isabs(name):
            return name, os.path.join(self._lora_path, name)
        return name, None

    def _check_task(self, known: frozenset[str], engine: str) -> None:
        needed = {"generate": ("chat", "completions"), **tasks.NEEDED}[self._task]
        if not known & set(needed):
            raise ConfigError(
                f"the {engine} engine cannot {self._task} with this model; it offers"
                f" {', '.join(sorted(known))}",
                field="task_type",
                value=self._task,
            )


def _outcome(deltas: list[Delta]) -> Outcome:
    """The outcome of one request; `parsed` are the columns of each of its answers."""
    if len(deltas) == 1 and not deltas[0].tool_calls:  # nearly always
        (one,) = deltas
        output = _output(
            one.text, list(one.token_ids), one.finish_reason, one.reasoning or None, one.logprobs
        )
        return Outcome(None, None, one.finish_reason, one.usage or Usage(), parsed=[output])
    return _outcome_of(Answers(deltas), deltas)


def _outcome_of(found: Answers, deltas: list[Delta]) -> Outcome:
    tokens: dict[int, list[int]] = {}
    for delta in deltas:
        tokens.setdefault(delta.index, []).extend(delta.token_ids)
    reasons = found.reasons
    reason = "length" if "length" in reasons.values() else reasons[min(reasons)]
    outputs = [
        _output(
            found.texts[index],
            tokens[index],
            reasons[index],
            found.reasoning.get(index),
            found.logprobs.get(index),
            found.tool_calls.get(index),
        )
        for index in sorted(reasons)
    ]
    return Outcome(None, None, reason, found.usage, parsed=outputs)


def _checked(structured: StructuredOutput | None) -> Callable[[Outcome], Awaitable[Outcome]]:
    """A function that notes in an outcome that the answer is not the JSON asked for. An answer with
    a tool call need not be JSON.
    """

    async def check(outcome: Outcome) -> Outcome:
        for output in outcome.parsed:
            _, text = without_reasoning(output["generated_text"])
            if not output["tool_calls"] and (why := await misfit(structured, text)) is not None:
                outcome.response = text
                outcome.error = invalid_json(why, output["finish_reason"], outcome.usage)
                break
        return outcome

    return check


def _columns(outcome: Outcome, prompt: Any, *, text: bool) -> dict[str, Any]:
    """The columns of a row's answers, and its prompt unchanged; without `text` only token ids.

    Raises `AnswerFormError`.
    """
    if outcome.error is not None:
        raise AnswerFormError(outcome.error.message)
    outputs, usage = outcome.parsed, outcome.usage
    assert usage is not None
    if not text:
        for output in outputs:
            output["generated_text"] = None
    return {
        "prompt": prompt,
        **outputs[0],
        "num_input_tokens": usage.prompt_tokens,
        "num_generated_tokens": usage.completion_tokens,
        "num_cached_tokens": usage.cached_tokens,
        "outputs": outputs if len(outputs) > 1 else None,
    }


def _output(
    text: str,
    tokens: list[int],
    reason: str | None,
    reasoning: str | None,
    logprobs: Sequence[TokenLogprob] | None,
    calls: list[ToolCall] | None = None,
) -> dict[str, Any]:
    if reasoning is None and "think>" in text:  # some engines leave thoughts in the text
        reasoning, text = without_reasoning(text)
    return {
        "generated_text": text,
        "generated_tokens": tokens,
        "finish_reason": reason,
        "reasoning_content": reasoning,
        "tool_calls": tool_call_list(calls) if calls else None,
        "logprobs": None if logprobs is None else token_logprobs(logprobs),
    }


def _outcome_as_ray(deltas: list[Delta]) -> Outcome:
    """As `_outcome`, in Ray's form: texts include the thoughts, and log probabilities are by token
    id, also for the prompt.
    """
    found = Answers(deltas)
    outcome = _outcome_of(found, deltas)
    for index, output in zip(sorted(found.reasons), outcome.parsed, strict=True):
        output |= {
            "generated_text": found.texts[index],
            "logprobs": logprobs_by_id(found.logprobs.get(index)),
            "prompt_logprobs": logprobs_by_id(found.prompt_logprobs.get(index)),
        }
    return outcome


_ASK = partial(collect, convert=_outcome)
_ASK_AS_RAY = partial(collect, convert=_outcome_as_ray)


class EngineStage(StatefulStage):
    """A row to the engine."""

    fn = EngineRequests

    def get_required_input_keys(self) -> dict[str, str]:
        made_with = self.fn_constructor_kwargs
        if made_with.get("task", "generate") != "generate" or made_with.get("chat", True):
            return {}
        return {"prompt": "The text to continue."}

    def get_optional_input_keys(self) -> dict[str, str]:
        task = self.fn_constructor_kwargs.get("task", "generate")
        keys = {
            "messages": "The conversation to continue, in OpenAI's form.",
            "prompt": "The text to continue, embed or classify.",
            "tokenized_prompt": "The same as token ids.",
            "sampling_params": "How to sample, in vLLM's names.",
            "response_format": "The form of the answer, as OpenAI has it.",
            "tools": "Functions that the model may call, in OpenAI's form.",
            "tool_choice": "Whether it must call one, in OpenAI's form.",
            "chat_template_kwargs": "Further variables of the chat template.",
            "model": "The LoRA adapter to answer with.",
        }
        return {**keys, **tasks.COLUMNS.get(task, {})}

    def shareable(self, row: Mapping[str, Any]) -> bool:
        if self.fn_constructor_kwargs.get("task", "generate") != "generate":
            return True
        params = row.get("sampling_params")
        if not isinstance(params, MAPPING):
            return False  # sampled
        return params.get("temperature") == 0 or params.get("seed") is not None


class OpenVINOEngineStage(EngineStage):
    """A row to the OpenVINO engine."""


class vLLMEngineStage(EngineStage):
    """Asks vLLM for each row."""


class SGLangEngineStage(EngineStage):
    """Asks SGLang for each row."""
