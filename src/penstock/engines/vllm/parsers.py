"""vLLM's own parsers: reasoning, and tool calls in the model's own format, as parts of deltas."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.engines.vllm.library import (
    ChatCompletionRequest,
    ReasoningParserManager,
    ToolParserManager,
)
from penstock.engines.vllm.prompts import Prepared, Prompts, constraint, output_kind
from penstock.errors import ConfigError, RequestError, nearest
from penstock.openai.tools import with_one_table
from penstock.types import SAME_NAME, ChatRequest, Delta, ToolCallPart

if TYPE_CHECKING:
    from penstock.engines.vllm.front import Front


def load_parsers(frontend: Mapping[str, Any], structured_outputs: Any) -> None:
    """Load the plugins that the options name. Raises `ConfigError` for an unknown parser.

    vLLM's server checks the same before it starts. The engine alone would accept any name, and
    parse no calls.
    """
    if plugin := frontend.get("tool_parser_plugin"):
        ToolParserManager.import_tool_parser(plugin)
    if plugin := structured_outputs.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(plugin)
    for field, name, manager in (
        ("tool_call_parser", frontend.get("tool_call_parser"), ToolParserManager),
        ("reasoning_parser", structured_outputs.reasoning_parser, ReasoningParserManager),
    ):
        if name and name not in (known := manager.list_registered()):
            raise ConfigError(
                f"vLLM has no parser '{name}'",
                field=f"engine_kwargs.{field}",
                value=name,
                hint=nearest(name, known),
            )


class ParsedChats:
    """Prepares parsed chats for one model. `state` is the state of vLLM's own application."""

    def __init__(self, front: Front, state: Any, prompts: Prompts) -> None:
        self._prompts = prompts
        self._renderer = copy(state.online_renderer)
        # Whoever serves the model decides on that.
        self._renderer.trust_request_chat_template = True
        self._parser_class = self._renderer.parser
        self._model_config = front.config.model_config
        has_reasoning = getattr(self._parser_class, "reasoning_parser_cls", None) is not None
        self._has_tools = getattr(self._parser_class, "tool_parser_cls", None) is not None
        self._always = has_reasoning or self._renderer.use_harmony

    def wants(self, request: ChatRequest) -> bool:
        """Whether the parsers must read the answer to the request."""
        return self._always or (
            self._has_tools and bool(request.tools) and request.tool_choice != "none"
        )

    async def prepare(self, request: ChatRequest) -> Prepared:
        """Render the request and make its parsers. Raises `RequestError`, and vLLM's errors."""
        self._prompts.check_sampling_ids(request.sampling)
        body = ChatCompletionRequest.model_validate(_body(request))
        rendered = await self._renderer.render_chat(body)
        if not isinstance(rendered, tuple):
            raise RequestError(rendered.error.message, param=rendered.error.param)
        _, (prompt,) = rendered
        room = self._prompts.room(prompt, request.sampling.max_tokens, request.sampling.whole)
        params = body.to_sampling_params(room, {})
        params.output_kind = output_kind(request)
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
        ids = prompt.get("prompt_token_ids") or []
        extras: dict[str, Any] = {}
        if parsers[0].reasoning_parser is not None:
            from_grammar = getattr(body, "_grammar_from_parser", False)
            extras = {
                "reasoning_ended": True if from_grammar else parsers[0].is_reasoning_end(ids),
                "reasoning_parser_kwargs": {"chat_template_kwargs": variables},
            }
        chat = ParsedChat(body, ids, parsers, stream=request.stream)
        return Prepared(prompt, params, request.sampling, chat.translate, extras)


class ParsedChat:
    """The parsers of one chat, one for each of its answers."""

    def __init__(self, body: Any, ids: list[int], parsers: list[Any], *, stream: bool) -> None:
        self._body = body
        self._parsers = parsers
        self._ids = ids
        self._stream = stream
        self._auto_tools = bool(parsers[0].tool_parser)
        self._called: set[int] = set()
        self._mark = getattr(parsers[0].reasoning_parser, "start_token", "")
        self._unmarked: set[int] = set()
        self._counts = parsers[0].reasoning_parser is not None
        self._written: dict[int, list[int]] = {}  # the ids of each answer's tokens
        self._named = not isinstance(body.tool_choice, (str, type(None)))

    def translate(self, delta: Delta) -> Delta:
        """Split the delta's text into reasoning, text and tool calls."""
        reasoning, text, calls = self._read(delta) if self._stream else self._read_whole(delta)
        if self._body.parallel_tool_calls is False:
            calls = tuple(call for call in calls if call.number == 0)
        if calls:
            self._called.add(delta.index)
        reason = delta.finish_reason
        if reason == "stop" and delta.index in self._called and not self._named:
            reason = "tool_calls"
        usage = delta.usage
        if self._counts:
            ids = self._written.setdefault(delta.index, [])
            ids += delta.token_ids
            if reason is not None and usage is not None:
                count = self._parsers[delta.index].count_reasoning_tokens(ids)
                usage = msgspec.structs.replace(usage, reasoning_tokens=count)
        return msgspec.structs.replace(
            delta,
            usage=usage,
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
            # vLLM's parsers drop a start mark, but not if the next token comes with it.
            reasoning = reasoning.removeprefix(self._mark)
            self._unmarked.add(delta.index)
        return reasoning, message.content, tuple(_part(call) for call in message.tool_calls or ())

    def _read_whole(self, delta: Delta) -> tuple[str | None, str | None, tuple[ToolCallPart, ...]]:
        """Split an unstreamed answer: the parsers leave a truncated call as text."""
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
    tools: Sequence[Mapping[str, Any]] | None = request.tools or None
    if tools and request.tool_choice == "required":  # then vLLM joins the tools' tables
        tools = with_one_table(tools)
    body: dict[str, Any] = {
        "messages": request.messages,
        "stream": True,
        "parallel_tool_calls": request.parallel_tool_calls,
        "n": request.n,
        "max_completion_tokens": sampling.max_tokens,
        **{name: getattr(sampling, name) for name in SAME_NAME},
        "stop": list(sampling.stop),
        "stop_token_ids": list(sampling.stop_token_ids),
        "chat_template": request.chat_template,
        "chat_template_kwargs": request.chat_template_kwargs or None,
        "kv_transfer_params": request.kv_transfer_params,
        "prompt_logprobs": sampling.prompt_logprobs,
        "logit_bias": {str(token_id): value for token_id, value in sampling.logit_bias} or None,
        "allowed_token_ids": list(sampling.allowed_token_ids) or None,
        "bad_words": list(sampling.bad_words) or None,
        **sampling.extra,
        "add_generation_prompt": request.add_generation_prompt,
        "continue_final_message": request.continue_final_message,
        "reasoning_effort": request.chat_template_kwargs.get("reasoning_effort"),
        "logprobs": None if sampling.logprobs is None else True,
        "top_logprobs": sampling.logprobs,
        "tools": tools,
        "tool_choice": tools and (request.tool_choice or "auto"),
        "structured_outputs": sampling.structured and constraint(sampling.structured),
    }
    return {name: value for name, value in body.items() if value is not None}
