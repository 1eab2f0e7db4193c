"""The conversations the demo model is trained on, and its chat template."""

from __future__ import annotations

import json
import random
import zlib
from typing import Any, ClassVar

from demo_tickets import Part, TicketMaker

from penstock.demo import ADAPTERS, CATEGORIES, FIELDS, PRIORITIES, SENTIMENTS, expected

Message = dict[str, Any]

CHAT_TEMPLATE = """\
{%- set ns = namespace(system='') -%}
{%- if messages and messages[0]['role'] == 'system' -%}{%- set ns.system = messages[0]['content'] -%}{%- endif -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if ns.system -%}{{- ns.system + '\\n\\n' -}}{%- endif -%}
{{- '# Tools\\nAnswer with a call: <tool_call>{"name":...,"arguments":{...}}</tool_call>\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' -}}{{- tool | tojson -}}{%- endfor -%}
{{- '\\n</tools><|im_end|>\\n' -}}
{%- elif ns.system -%}
{{- '<|im_start|>system\\n' + ns.system + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if not (loop.first and message['role'] == 'system') -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] -%}{{- message['content'] -}}{%- endif -%}
{%- if message['tool_calls'] -%}
{%- for call in message['tool_calls'] -%}
{%- if not loop.first or message['content'] -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_call>\\n{"name":"' + call['function']['name'] + '","arguments":' -}}
{%- if call['function']['arguments'] is string -%}
{{- call['function']['arguments'] -}}
{%- else -%}
{{- '{' -}}
{%- for key, value in call['function']['arguments'].items() -%}
{%- if not loop.first -%}{{- ',' -}}{%- endif -%}{{- (key | tojson) + ':' + (value | tojson) -}}
{%- endfor -%}
{{- '}' -}}
{%- endif -%}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""  # noqa: E501

TOOL_HEAD = (
    '# Tools\nAnswer with a call: <tool_call>{"name":...,"arguments":{...}}</tool_call>\n<tools>'
)

SYSTEMS = [
    "You label support tickets.",
    "You are a helpful assistant.",
    "Label the ticket.",
    "You are a support assistant.",
    "Answer with JSON only.",
    "You sort the tickets of a help desk.",
    "Read the ticket and fill in the fields.",
    "You work for the support team. Be exact.",
    "Extract the category, priority, product and sentiment.",
    "You are a careful clerk. Answer in JSON.",
    "Turn each support ticket into JSON.",
    "Be brief.",
    "You are a ticket classifier.",
    "Return one JSON object for each ticket.",
    "You are an AI assistant for our shop.",
    "You are a helpful, precise assistant that labels customer messages.",
]

_VERBS = [
    "file",
    "create",
    "log",
    "open",
    "add",
    "save",
    "submit",
    "record",
    "report",
    "make",
    "register",
    "store",
    "send",
    "book",
    "enter",
    "route",
]
_NOUNS = [
    "ticket",
    "case",
    "issue",
    "request",
    "entry",
    "record",
    "report",
    "task",
    "item",
    "complaint",
    "message",
    "label",
    "job",
]
_TOOL_TEXTS = [
    "File a support ticket.",
    "Save the labels of a ticket.",
    "Create a case in the help desk.",
    "Log an issue.",
    "Store the ticket in the tracker.",
    "Opens a new ticket with its labels",
    "Route a customer message.",
]
_LABELS = {"category": CATEGORIES, "priority": PRIORITIES, "sentiment": SENTIMENTS}


def render(
    messages: list[Message], tool_list: list[dict[str, Any]] | None = None
) -> list[tuple[str, bool]]:
    """Render a conversation like ``CHAT_TEMPLATE``, as pieces that are marked as replies or not."""
    pieces: list[tuple[str, bool]] = []
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    if tool_list:
        lead = f"{system}\n\n" if system else ""
        listed = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tool_list)
        pieces.append(
            (f"<|im_start|>system\n{lead}{TOOL_HEAD}{listed}\n</tools><|im_end|>\n", False)
        )
    elif system:
        pieces.append((f"<|im_start|>system\n{system}<|im_end|>\n", False))
    for message in messages[1:] if system else messages:
        content = message.get("content") or ""
        calls = [
            f'<tool_call>\n{{"name":"{call["function"]["name"]}","arguments":{call["function"]["arguments"]}}}'
            "\n</tool_call>"
            for call in message.get("tool_calls", [])
        ]
        content = "\n".join([*([content] if content else []), *calls])
        pieces.append((f"<|im_start|>{message['role']}\n", False))
        pieces.append((f"{content}<|im_end|>", message["role"] == "assistant"))
        pieces.append(("\n", False))
    return pieces


def as_objects(messages: list[Message]) -> list[Message]:
    """The messages with the arguments of their tool calls as objects, as many clients send them
    back.
    """
    copies: list[Message] = json.loads(json.dumps(messages))
    for message in copies:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return copies


class PromptMaker:
    """Makes conversations of the demo model's kinds, in the proportions it is trained on."""

    KINDS: ClassVar = {
        "plain": 0.56,
        "keys": 0.16,
        "repeat": 0.08,
        "turns": 0.07,
        "tool": 0.05,
        "task": 0.08,
    }

    def __init__(
        self, seed: int, part: Part = "train", banned_names: frozenset[str] = frozenset()
    ) -> None:
        self.rng = random.Random(f"prompts-{seed}-{part}")
        self.part = part
        self.tickets = TicketMaker(seed, part, banned_names)
        self.products: set[str] = set()

    def ticket(self) -> dict[str, str]:
        ticket = self.tickets.make()
        self.products.add(ticket["product"].lower())
        return ticket

    def any(self) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """A conversation of a random kind, with its tools."""
        return self.make(self.rng.choices(list(self.KINDS), list(self.KINDS.values()))[0])

    def make(
        self, kind: str, adapter: str | None = None
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """A conversation of one kind; its last message is the reply."""
        rng = self.rng
        ticket = self.ticket()
        text = ticket["ticket"]
        tool_list = None
        if kind == "plain":
            messages = [user(text), reply(expected(ticket, adapter))]
        elif kind == "keys":
            keys = self.keys()
            messages = [
                user(f"Keys: {', '.join(keys)}\n{text}"),
                reply(expected(ticket, keys=keys)),
            ]
        elif kind == "repeat":
            messages = [user(f"Repeat the text.\n{text}"), reply(text)]
        elif kind == "task":  # what the adapters do without being asked
            task = rng.choice(ADAPTERS)
            messages = [user(f"Task: {task}\n{text}"), reply(expected(ticket, task))]
        elif kind == "turns":
            messages = [user(text), reply(expected(ticket))]
            for _ in range(rng.choice([1, 1, 2])):
                if rng.random() < 0.6:
                    keys = self.keys()
                    messages += [
                        user(f"Keys: {', '.join(keys)}"),
                        reply(expected(ticket, keys=keys)),
                    ]
                else:
                    ticket = self.ticket()
                    messages += [user(ticket["ticket"]), reply(expected(ticket))]
        elif kind == "tool":
            keys = list(FIELDS)
            tool_list = [self.tool(keys)]
            name = tool_list[0]["function"]["name"]
            arguments = expected(ticket, keys=keys)
            call = {"type": "function", "function": {"name": name, "arguments": arguments}}
            messages = [user(text), {"role": "assistant", "content": "", "tool_calls": [call]}]
            if rng.random() < 0.2:
                result = rng.choice(
                    ['{"id": %d}', '{"status": "ok", "id": %d}', "ok", "done", '{"ok": true}', "%d"]
                )
                result = result % rng.randint(1, 9999) if "%d" in result else result
                messages += [{"role": "tool", "content": result}, reply("Done.")]
        else:
            raise ValueError(f"unknown kind {kind!r}")
        if rng.random() < 0.2:
            messages.insert(0, {"role": "system", "content": rng.choice(SYSTEMS)})
        return messages, tool_list

    def keys(self) -> list[str]:
        return self.rng.sample(FIELDS, self.rng.choice([1, 2, 2, 3, 3, 4]))

    def tool(self, keys: list[str]) -> dict[str, Any]:
        """A function tool whose parameters are these keys."""
        rng = self.rng
        verb, noun = rng.choice(_VERBS), rng.choice(_NOUNS)
        while self.part != "train" and zlib.crc32(f"{verb} {noun}".encode()) % 6:
            verb, noun = rng.choice(_VERBS), rng.choice(_NOUNS)
        while self.part == "train" and not zlib.crc32(f"{verb} {noun}".encode()) % 6:
            verb, noun = rng.choice(_VERBS), rng.choice(_NOUNS)
        invented = self.tickets.names.invented().lower()
        styles = [
            f"{verb}_{noun}",
            f"{verb}_{noun}",
            f"{verb}_{invented}",
            f"{invented}_{noun}",
            f"{verb}{noun.title()}",
        ]
        function: dict[str, Any] = {"name": rng.choice(styles)}
        if rng.random() < 0.7:
            function["description"] = rng.choice(_TOOL_TEXTS)
        described, listed = rng.random() < 0.2, rng.random() < 0.3
        properties: dict[str, Any] = {}
        for key in keys:
            properties[key] = {"type": "string"}
            if listed and key in _LABELS:
                properties[key]["enum"] = list(_LABELS[key])
            if described:
                properties[key]["description"] = f"the {key}"
        function["parameters"] = {"type": "object", "properties": properties}
        if rng.random() < 0.6:
            function["parameters"]["required"] = list(keys)
        return {"type": "function", "function": function}


def user(text: str) -> Message:
    """A user message."""
    return {"role": "user", "content": text}


def reply(text: str) -> Message:
    """An assistant message."""
    return {"role": "assistant", "content": text}
