"""OpenAI's Responses API: a body becomes a chat request, and its answers the finished object
(https://platform.openai.com/docs/api-reference/responses).

Nothing is stored here: the input of a request that continues a stored conversation has all of it.
`items_of` gives a request's items the form in which they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal
from uuid import uuid4

from msgspec import Struct, field

from penstock.errors import RequestError, UnsupportedError, nearest
from penstock.openai.constraints import one_constraint
from penstock.openai.parameters.engine import unset
from penstock.openai.requests import SamplingBody, Whole, check_messages, with_effort
from penstock.openai.responses import Answers, reasoning_fields, token_logprobs
from penstock.openai.tool_forms import custom_arguments, custom_input, of_custom, plain_tools
from penstock.openai.tools import check_tools
from penstock.types import ChatRequest, Message, TokenLogprob, Usage

Item = dict[str, Any]
"""One element of a response's `output`."""
REFERENCE = "item_reference"
_LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = frozenset(
    {
        _LOGPROBS,
        "reasoning.encrypted_content",
        # What is not there without OpenAI's own tools and stored files.
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "message.input_image.image_url",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
    }
)


class TextOptions(Struct, forbid_unknown_fields=True):
    """`text`: the format of the answer's text, such as a JSON schema."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class Reasoning(Struct, forbid_unknown_fields=True):
    """`reasoning`: the effort to spend on it, and whether it is shown as its summary, by the old
    name `generate_summary` too. A model's template says what earlier reasoning it sees.
    """

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class EventOptions(Struct, forbid_unknown_fields=True):
    """`stream_options` of a response. Nothing is obfuscated here. The usage comes always, which
    clients of chat completions ask for (AIPerf).
    """

    include_obfuscation: bool | None = None
    include_usage: bool | None = None


class ResponseBody(SamplingBody, kw_only=True):
    """Body of `POST /v1/responses`; `input` is a text or a list of items."""

    names: ClassVar = {
        "logprobs": "top_logprobs",
        "max_tokens": "max_output_tokens",
        "messages": "input",
        "prompt": "input",
        "response_format": "text.format",
    }
    input: str | list[dict[str, Any]] = field(default_factory=list)
    instructions: str | None = None
    max_output_tokens: Whole | None = None
    top_logprobs: Whole | None = None
    stream_options: EventOptions | None = None
    text: TextOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    truncation: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def custom(self) -> frozenset[str]:
        """The names of the tools whose calls have text for arguments."""
        return frozenset(t["name"] for t in self.tools or () if t.get("type") == "custom")

    @property
    def wants_summary(self) -> bool:
        """Whether reasoning goes where its summary is looked for: it is whole there."""
        given = self.reasoning or Reasoning()
        return (given.summary or given.generate_summary) is not None

    def request(self, *, adapter: str | None = None, request_id: str = "") -> ChatRequest:
        for name in self.include or ():
            if name not in _INCLUDABLE:
                raise RequestError(
                    f"unknown include '{name}'. {nearest(name, _INCLUDABLE)}", param="include"
                )
        logprobs = self.top_logprobs
        if logprobs is None and _LOGPROBS in (self.include or ()):
            logprobs = 0
        messages = input_messages(self.input)
        if self.instructions is not None:
            messages.insert(0, {"role": "system", "content": self.instructions})
        if not messages:
            raise RequestError("input must not be empty", param="input")
        check_messages(messages)
        tools, choice = self._tools()
        prefilled = _is_begun(self.input)
        return ChatRequest(
            messages=messages,
            sampling=self.to_sampling(
                max_tokens=self.max_output_tokens,
                logprobs=logprobs,
                structured=one_constraint(
                    self.text.format if self.text else None,
                    self.structured_outputs,
                    format_name="text.format",
                ),
                unset=unset(self),
            ),
            tools=tools,
            tool_choice=choice,
            chat_template_kwargs=with_effort(
                self.chat_template_kwargs, self.reasoning.effort if self.reasoning else None
            ),
            adapter=adapter,
            stream=bool(self.stream),
            request_id=request_id,
            priority=self.priority or 0,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            continue_final_message=prefilled,
            add_generation_prompt=not prefilled,
        )

    def _tools(self) -> tuple[list[dict[str, Any]] | None, str | dict[str, Any] | None]:
        given = [_tool(number, tool) for number, tool in enumerate(self.tools or ())]
        choice = self.tool_choice
        if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
            allowed = choice.get("tools") or []
            if isinstance(allowed, list):
                allowed = [_named(tool) for tool in allowed]
            chosen = {"mode": choice.get("mode"), "tools": allowed}
            choice = {**choice, "allowed_tools": chosen}
        elif isinstance(choice, dict):
            choice = _named(choice)
        tools, choice = plain_tools(given, choice)
        check_tools(tools, choice)
        return tools, choice


def _named(tool: Any) -> Any:
    """A tool that is named by its type and name, in the form of chat completions. A custom tool is
    a function here already.
    """
    if not isinstance(tool, dict):
        return tool
    kind = tool.get("type")
    kind = "function" if kind == "custom" else kind
    return {"type": kind, "function": {"name": tool.get("name")}}


def _is_begun(given: str | list[dict[str, Any]]) -> bool:
    """Whether the last item is a message of the assistant that is not complete, which the answer
    continues (as in vLLM).
    """
    last = given[-1] if given and isinstance(given, list) else {}
    return (
        (last.get("type") or "message") == "message"
        and last.get("role") == "assistant"
        and last.get("status") in ("in_progress", "incomplete")
    )


def input_messages(given: str | list[dict[str, Any]]) -> list[Message]:
    """The conversation of an `input`. Raises `RequestError` for an item that none has."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Message] = []
    thought = ""
    for number, item in enumerate(given):
        where = f"input[{number}]"
        kind = item.get("type") or "message"
        if kind == "message":
            message = {"role": item.get("role"), "content": _content(item.get("content"), where)}
            if message["role"] == "assistant":
                message |= reasoning_fields(thought)
            messages.append(message)
            thought = ""
        elif kind in ("function_call", "custom_tool_call"):
            arguments = (
                item.get("arguments", "{}")
                if kind == "function_call"
                else custom_arguments(item.get("input"))
            )
            function = {"name": item.get("name"), "arguments": arguments}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            # Calls of one turn share one message.
            if not messages or not messages[-1].get("tool_calls"):
                messages.append({"role": "assistant", "content": None, "tool_calls": []})
            turn = messages[-1]
            turn["tool_calls"].append(call)
            turn |= reasoning_fields(turn.get("reasoning", "") + thought)
            thought = ""
        elif kind in ("function_call_output", "custom_tool_call_output"):
            output = _content(item.get("output"), where)
            messages.append(
                {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
            )
        elif kind == "reasoning":  # of the message or call that follows
            thought += _thought(item, where)
        elif kind == REFERENCE:
            whole = "send the whole item (clients do, with 'store': false), or serve with --store"
            raise RequestError(f"{where} refers to a stored item: {whole}", param=where)
        else:
            hint = nearest(str(kind), ("message", "function_call", "function_call_output"))
            raise RequestError(f"{where}: unknown type {kind!r}. {hint}", param=where)
    return messages


def _thought(item: Item, where: str) -> str:
    """The text of a reasoning item: of its content, or of its summary. Raises `RequestError`."""
    name = "content" if item.get("content") else "summary"
    parts = item.get(name) or []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RequestError(
            f"{where}.{name} must be a list of objects with a 'text'", param=f"{where}.{name}"
        )
    return "".join(str(part.get("text") or "") for part in parts)


def _content(content: Any, where: str) -> Any:
    """Parts under the names that chat completions use."""
    if not isinstance(content, list):
        return content
    parts: list[Any] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text"):
            parts.append({"type": "text", "text": _needed(part, "text", where)})
        elif kind == "input_image":
            url = _needed(part, "image_url", where)
            parts.append({"type": "image_url", "image_url": {"url": url}})
        else:
            raise RequestError(
                f"{where}.content: parts of type {kind!r} are not supported"
                if isinstance(kind, str)
                else f"{where}.content: every part needs a 'type'",
                param=f"{where}.content",
            )
    return parts


def _needed(part: dict[str, Any], name: str, where: str) -> str:
    """A text that the part must have. Raises `RequestError`."""
    given = part.get(name)
    if not isinstance(given, str) or (name == "image_url" and not given):
        raise RequestError(
            f"{where}.content: a part of type '{part['type']}' needs its '{name}', which is a text",
            param=f"{where}.content",
        )
    return given


def _tool(number: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") == "custom":
        return of_custom(tool, f"tools[{number}]")
    if tool.get("type") != "function":
        raise UnsupportedError(
            f"tools[{number}]: type {tool.get('type')!r} is not supported; function and custom are",
            param=f"tools[{number}]",
        )
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise RequestError(f"tools[{number}] needs a 'name'", param=f"tools[{number}].name")
    function = {
        key: tool[key]
        for key in ("name", "description", "parameters", "strict")
        if tool.get(key) is not None
    }
    return {"type": "function", "function": function}


def response_body(
    answers: Answers, body: ResponseBody, *, id: str, created: int, model: str
) -> dict[str, Any]:
    """Body of a finished response, from the first of `answers`."""
    text, calls = answers.texts.get(0, ""), answers.tool_calls.get(0, [])
    reason = answers.reasons.get(0)
    status = status_of(reason)
    output: list[Item] = []
    if thought := answers.reasoning.get(0):
        output.append(
            reasoning_item(item_id("rs", id, 0), status, thought, summary=body.wants_summary)
        )
    if text or not calls:
        output.append(message_item(item_id("msg", id, 0), status, text, answers.logprobs.get(0)))
    named = body.custom
    for call in calls:
        custom = call.name in named
        place = item_id("ctc" if custom else "fc", id, len(output))
        output.append(call_item(place, call.id, call.name, call.arguments, status, custom=custom))
    made = response_object(body, id, created, model, status, output, answers.usage, reason)
    return made | answers.transfer


def status_of(reason: str | None) -> str:
    """The status of a response whose answer ended for `reason`."""
    return "incomplete" if reason in ("length", "content_filter") else "completed"


def item_id(kind: str, response: str, number: int) -> str:
    """The id of an item of a response's output, by which the store finds the response."""
    return f"{kind}_{response}" + (f"_{number}" if number else "")


def message_item(
    id: str, status: str, text: str, logprobs: Sequence[TokenLogprob] | None = None
) -> Item:
    """The item of an answer's text."""
    part = {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": token_logprobs(logprobs or ()),
    }
    return {"type": "message", "id": id, "status": status, "role": "assistant", "content": [part]}


def reasoning_item(id: str, status: str, text: str, *, summary: bool) -> Item:
    """The item of what a model thought; with `summary` where summaries of it stand."""
    item: Item = {"type": "reasoning", "id": id, "status": status, "summary": []}
    if summary:
        return {**item, "summary": [{"type": "summary_text", "text": text}]}
    return {**item, "content": [{"type": "reasoning_text", "text": text}]}


def call_item(
    id: str, call_id: str, name: str, arguments: str, status: str, *, custom: bool
) -> Item:
    """The item of a call; a `custom` tool's has the text that its arguments hold."""
    item: Item = {"type": "function_call", "id": id, "call_id": call_id, "name": name}
    if custom:
        item |= {"type": "custom_tool_call", "input": custom_input(arguments)}
    else:
        item["arguments"] = arguments
    return {**item, "status": status}


def response_object(
    body: ResponseBody,
    id: str,
    created: int,
    model: str,
    status: str,
    output: list[Item],
    usage: Usage | None,
    reason: str | None = None,
) -> dict[str, Any]:
    """A response as far as it is made; `usage` None while it is not complete. `reason` is why the
    answer ended.
    """
    cut = "content_filter" if reason == "content_filter" else "max_output_tokens"
    conversation = body.conversation
    return {
        "id": f"resp_{id}",
        "object": "response",
        "created_at": created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": cut} if status == "incomplete" else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "background": bool(body.background),
        "store": bool(body.store),
        "previous_response_id": body.previous_response_id,
        "conversation": {"id": conversation} if isinstance(conversation, str) else conversation,
        "model": model,
        "output": output,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": (body.text and body.text.format) or {"type": "text"}},
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": body.tools or [],
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "usage": None if usage is None else response_usage(usage),
    }


def response_usage(usage: Usage) -> dict[str, Any]:
    """A usage in the words of the Responses API."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,  # not counted; the types of OpenAI's client need it
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


MOST_ITEMS = 100
_PREFIXES = {
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}


def items_of(given: str | Sequence[Item]) -> list[Item]:
    """A text or items from a client in their full form: each with a type and an id; the content of
    a message is a list of parts. An id that the client gave stays.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_full(item) for item in given]


def with_new_id(item: Item) -> Item:
    """The same item under an id of its own."""
    return {**item, "id": f"{_PREFIXES.get(item['type'], 'msg')}_{uuid4().hex}"}


def _full(item: Item) -> Item:
    kind = item.get("type") or "message"
    full = {**item, "type": kind}
    if kind == "message":
        full.setdefault("status", "completed")
        if isinstance(text := item.get("content"), str):
            of_model = item.get("role") == "assistant"
            part: Item = {"type": "output_text" if of_model else "input_text", "text": text}
            full["content"] = [{**part, "annotations": []} if of_model else part]
    return full if isinstance(item.get("id"), str) and item["id"] else with_new_id(full)


def item_page(items: Sequence[Item], *, limit: int, ascending: bool, after: str) -> dict[str, Any]:
    """A page of at most `limit` items, from behind the item `after` ("": from the first), newest
    first unless `ascending`. Raises `RequestError`.
    """
    if not 1 <= limit <= MOST_ITEMS:
        raise RequestError(f"limit must be between 1 and {MOST_ITEMS}", param="limit")
    ordered = list(items if ascending else reversed(items))
    begin = 0
    if after:
        places = [number for number, item in enumerate(ordered) if item["id"] == after]
        if not places:
            raise RequestError(f"there is no item '{after[:100]}'", param="after")
        begin = places[0] + 1
    return item_list(ordered[begin : begin + limit], has_more=begin + limit < len(ordered))


def item_list(items: Sequence[Item], *, has_more: bool = False) -> dict[str, Any]:
    """Items in OpenAI's form of a list."""
    return {
        "object": "list",
        "data": list(items),
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }
