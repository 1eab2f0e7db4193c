"""Chats whose answers vLLM's own parsers read: reasoning, and tool calls in the model's own
format.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from penstock.engines.vllm.front import Front
from penstock.engines.vllm.library import ChatCompletionRequest, RequestOutputKind
from penstock.engines.vllm.translation.prompts import Prompts
from penstock.errors import RequestError
from penstock.types import ChatRequest, Delta, StructuredOutput, ToolCallPart


class ParsedChats:
    """Prepares parsed chats for one model. `state` is the state of vLLM's own application."""

    def __init__(self, front: Front, state: Any, prompts: Prompts) -> None:
        self._prompts = prompts
        self._renderer = state.online_renderer
        self._parser_class = self._renderer.parser
        self._model_config = front.config.model_config
        self._has_reasoning = getattr(self._parser_class, "reasoning_parser_cls", None) is not None
        self._has_tools = getattr(self._parser_class, "tool_parser_cls", None) is not None
        self._always = self._has_reasoning or self._renderer.use_harmony

    def wants(self, request: ChatRequest) -> bool:
        """Whether the parsers must read the request's answer."""
        return self._always or (
            self._has_tools and bool(request.tools) and request.tool_choice != "none"
        )

    async def prepare(self, request: ChatRequest) -> ParsedChat:
        """Render the request and make its parsers. Raises `RequestError`, or vLLM's own error, for
        a wrong request.
        """
        body = ChatCompletionRequest.model_validate(_body(request))
        rendered = await self._renderer.render_chat(body)
        if not isinstance(rendered, tuple):
            raise RequestError(rendered.error.message, param=rendered.error.param)
        _, (prompt,) = rendered
        room = self._prompts.room(prompt, request.sampling.max_tokens)
        params = body.to_sampling_params(room, {})
        params.output_kind = (
            RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
        )
        variables = (
            body.build_chat_params(None, "auto")
            .with_defaults(self._prompts.variables)
            .chat_template_kwargs
        )
        parsers = [
            self._parser_class(
                self._prompts.tokenizer,
                body.tools,
                chat_template_kwargs=variables,
                model_config=self._model_config,
            )
            for _ in range(request.n)
        ]
        return ParsedChat(body, prompt, params, parsers, variables, stream=request.stream)


class ParsedChat:
    """One parsed chat: `prompt`, `params` and `extras` are for `AsyncLLM.generate`."""

    def __init__(
        self,
        body: Any,
        prompt: Any,
        params: Any,
        parsers: list[Any],
        variables: Mapping[str, Any],
        *,
        stream: bool,
    ) -> None:
        self.prompt = prompt
        self.params = params
        self._body = body
        self._parsers = parsers
        self._ids = prompt.get("prompt_token_ids") or []
        self._stream = stream
        self._auto_tools = bool(parsers[0].tool_parser)
        self._called: set[int] = set()
        self._mark = getattr(parsers[0].reasoning_parser, "start_token", "")
        self._unmarked: set[int] = set()
        self._named = not isinstance(body.tool_choice, (str, type(None)))
        self.extras: dict[str, Any] = {}
        if parsers[0].reasoning_parser is not None:
            from_grammar = getattr(body, "_grammar_from_parser", False)
            self.extras = {
                "reasoning_ended": True if from_grammar else parsers[0].is_reasoning_end(self._ids),
                "reasoning_parser_kwargs": {"chat_template_kwargs": variables},
            }

    def translate(self, delta: Delta) -> Delta:
        """Split the delta's text into reasoning, text and tool calls, each of which may be
        empty.
        """
        reasoning, text, calls = self._read(delta) if self._stream else self._read_whole(delta)
        if self._body.parallel_tool_calls is False:
            calls = tuple(call for call in calls if call.number == 0)
        if calls:
            self._called.add(delta.index)
        reason = delta.finish_reason
        if reason == "stop" and delta.index in self._called and not self._named:
            reason = "tool_calls"
        return msgspec.structs.replace(
            delta,
            text=text or "",
            reasoning=reasoning or "",
            tool_calls=calls,
            finish_reason=reason,
        )

    def _read(self, delta: Delta) -> tuple[str | None, str | None, tuple[ToolCallPart, ...]]:
        message = self._parsers[delta.index].parse_delta(
            delta_text=delta.text,
            delta_token_ids=list(delta.token_ids),
            request=self._body,
            prompt_token_ids=self._ids,
            finished=delta.finish_reason is not None,
        )
        if message is None:
            return None, None, ()
        reasoning = message.reasoning
        if reasoning and delta.index not in self._unmarked:
            # vLLM's parsers drop a start mark that comes alone, but keep one that comes with the
            # next token.
            reasoning = reasoning.removeprefix(self._mark)
            self._unmarked.add(delta.index)
        return reasoning, message.content, tuple(_part(call) for call in message.tool_calls or ())

    def _read_whole(self, delta: Delta) -> tuple[str | None, str | None, tuple[ToolCallPart, ...]]:
        """Split an unstreamed answer: the parsers know where it ends, and leave a truncated call as
        text.
        """
        reasoning, text, calls = self._parsers[delta.index].parse(
            delta.text,
            self._body,
            enable_auto_tools=self._auto_tools,
            model_output_token_ids=delta.token_ids,
        )
        parts = (
            ToolCallPart(number, call.arguments, call.id or f"call_{uuid.uuid4().hex}", call.name)
            for number, call in enumerate(calls or ())
        )
        return reasoning, text, tuple(parts)


def _part(call: Any) -> ToolCallPart:
    function = call.function
    return ToolCallPart(
        call.index,
        (function.arguments or "") if function is not None else "",
        call.id,
        function.name if function is not None else None,
    )


def _body(request: ChatRequest) -> dict[str, Any]:
    """The request as a body of vLLM's HTTP API."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "messages": request.messages,
        "stream": True,
        "parallel_tool_calls": request.parallel_tool_calls,
        "n": request.n,
        "max_completion_tokens": sampling.max_tokens,
        "min_tokens": sampling.min_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "stop": list(sampling.stop),
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": sampling.ignore_eos,
        "chat_template": request.chat_template,
        "chat_template_kwargs": request.chat_template_kwargs or None,
        "kv_transfer_params": request.kv_transfer_params,
    }
    if sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    if request.tools:
        body |= {"tools": request.tools, "tool_choice": request.tool_choice or "auto"}
    if sampling.structured is not None:
        body["structured_outputs"] = _constraint(sampling.structured)
    effort = request.chat_template_kwargs.get("reasoning_effort")
    if effort is not None:
        body["reasoning_effort"] = effort
    return {name: value for name, value in body.items() if value is not None}


def _constraint(structured: StructuredOutput) -> dict[str, Any]:
    if structured.kind == "json_schema":
        return {"json": structured.spec}
    if structured.kind in ("regex", "grammar"):
        return {structured.kind: structured.spec}
    return {"json_object": True}
