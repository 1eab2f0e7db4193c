"""Which form a model's answers have: by name, or found by the marks in its chat template.

Names are vLLM's, and SGLang's where they differ.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache

from msgspec import Struct

from penstock.errors import ConfigError, nearest
from penstock.openai.parsers.harmony import HarmonyCalls
from penstock.openai.parsers.json_calls import HERMES, DeepSeekCalls, JsonCalls, MistralCalls
from penstock.openai.parsers.python_calls import PythonCalls
from penstock.openai.parsers.tag_calls import GemmaCalls, TagCalls
from penstock.openai.parsers.text import CallForm, Thinking

_FUNCTION = ("<function=", r"<function=([^>]+)>", "</function>")
_PARAMETER = (r"<parameter=([^>]+)>", "</parameter>")
_INVOKE = ("<invoke name=", r'<invoke name="?([^">]+)"?>', "</invoke>")
_NAMED_PARAMETER = (r'<parameter name="?([^">]+)"?>', "</parameter>")
_DSML = "｜DSML｜"
_DSML_TAGS = (
    f"<{_DSML}invoke name=",
    rf'<{_DSML}invoke name="([^"]+)"\s*>',
    f"</{_DSML}invoke>",
    rf'<{_DSML}parameter name="([^"]+)"(?:\s+string="(true|false)")?\s*>',
    f"</{_DSML}parameter>",
)
_LLAMA3 = JsonCalls(("<|python_tag|>",), bare=("{",))
_LLAMA4_PYTHON = PythonCalls(("<|python_start|>",), ("<|python_end|>",))
_QWEN3_CODER = TagCalls("<tool_call>", "</tool_call>", *_FUNCTION, *_PARAMETER, bare=True)
_GLM = TagCalls(
    "<tool_call>",
    "",
    "",
    r"([^\s<{][^\n<{]*)",
    "</tool_call>",
    r"<arg_key>([^<]*)</arg_key>\s*<arg_value>",
    "</arg_value>",
)
_MINIMAX = TagCalls("<minimax:tool_call>", "</minimax:tool_call>", *_INVOKE, *_NAMED_PARAMETER)
_SEED = TagCalls("<seed:tool_call>", "</seed:tool_call>", *_FUNCTION, *_PARAMETER)
_DEEPSEEK32 = TagCalls(f"<{_DSML}function_calls>", f"</{_DSML}function_calls>", *_DSML_TAGS)
_DEEPSEEK4 = TagCalls(f"<{_DSML}tool_calls>", f"</{_DSML}tool_calls>", *_DSML_TAGS)
_GRANITE = JsonCalls(("<|tool_call|>", "<tool_call>"), "</tool_call>")
_PHI4 = JsonCalls(("functools", "<|tool_call|>"), "<|/tool_call|>")
_FUNCTION_GEMMA = GemmaCalls("<start_function_call>", "<end_function_call>", "<escape>")
_GEMMA4 = GemmaCalls("<|tool_call>", "<tool_call|>", '<|"|>')
_LISTS = JsonCalls(("[TOOL_CALLS]", "<tool_call>"), "</tool_call>", bare=("[",))
HARMONY = HarmonyCalls()

CALLS: Mapping[str, CallForm] = {
    "hermes": HERMES,
    "qwen3_json": HERMES,
    "granite4": HERMES,
    "longcat": JsonCalls(("<longcat_tool_call>",), "</longcat_tool_call>"),
    "jamba": JsonCalls(("<tool_calls>",), "</tool_calls>"),
    "internlm": JsonCalls(("<|action_start|><|plugin|>",), "<|action_end|>"),
    "granite": _GRANITE,
    "granite-20b-fc": JsonCalls(("<function_call>",)),
    "phi4_mini_json": _PHI4,
    "xlam": _LISTS,
    "llama3_json": _LLAMA3,
    "llama4_json": _LLAMA3,
    "pythonic": _LLAMA4_PYTHON,
    "llama4_pythonic": _LLAMA4_PYTHON,
    "olmo3": PythonCalls(("<function_calls>",), ("</function_calls>",)),
    "mistral": MistralCalls(),
    "deepseek_v3": DeepSeekCalls(),
    "deepseek_v31": DeepSeekCalls(),
    "deepseek_v32": _DEEPSEEK32,
    "deepseek_v4": _DEEPSEEK4,
    "qwen3_coder": _QWEN3_CODER,
    "qwen3_xml": _QWEN3_CODER,
    "glm45": _GLM,
    "glm47": _GLM,
    "minimax_m2": _MINIMAX,
    "seed_oss": _SEED,
    "functiongemma": _FUNCTION_GEMMA,
    "gemma4": _GEMMA4,
    "openai": HARMONY,
}
_OTHER_CALLS = {
    "qwen": "hermes",
    "qwen25": "hermes",
    "llama3": "llama3_json",
    "deepseekv3": "deepseek_v3",
    "deepseekv31": "deepseek_v31",
    "deepseekv32": "deepseek_v32",
    "glm": "glm45",
    "minimax-m2": "minimax_m2",
    "gpt-oss": "openai",
}
_OTHER_THOUGHTS = {
    "deepseek-r1": "deepseek_r1",
    "deepseek-v3": "deepseek_v3",
    "qwen3-thinking": "qwen3",
    "gpt-oss": "openai_gptoss",
}

_THINK = Thinking(("<think>",), ("</think>",))
_HARMONY_THINKING = Thinking(
    ("<|channel|>analysis<|message|>",),
    ("<|end|><|start|>assistant<|channel|>final<|message|>",),
)
_GRANITE_THINKING = Thinking(
    ("Here is my thought process:", "Here's my thought process:"),
    ("Here is my response:", "Here's my response:"),
)
_MISTRAL_THINKING = Thinking(("[THINK]",), ("[/THINK]",))
_GEMMA_THINKING = Thinking(("<|channel>thought",), ("<channel|>",))
_SEED_THINKING = Thinking(("<seed:think>",), ("</seed:think>",))

THINKING: Mapping[str, Thinking | None] = {
    "deepseek_r1": Thinking(("<think>",), ("</think>",), always=True),
    "deepseek_v3": _THINK,
    "qwen3": _THINK,
    "glm45": _THINK,
    "granite_thinking_parser": _THINK,
    "granite": _GRANITE_THINKING,
    "mistral": _MISTRAL_THINKING,
    "gemma4": _GEMMA_THINKING,
    "seed_oss": _SEED_THINKING,
    "openai_gptoss": _HARMONY_THINKING,
    "identity": None,
}
"""`identity`: thoughts stay in the text."""


class Forms(Struct, frozen=True):
    """The forms of a model's calls and thoughts. `thinking` None: it marks none."""

    calls: CallForm = HERMES
    thinking: Thinking | None = None


def check_names(calls: str | None, thinking: str | None) -> None:
    """Raise `ConfigError` for a parser that is not in the tables, naming the nearest."""
    tables: tuple[tuple[str, str | None, Collection[str]], ...] = (
        ("tool_call_parser", calls, {*CALLS, *_OTHER_CALLS}),
        ("reasoning_parser", thinking, {*THINKING, *_OTHER_THOUGHTS}),
    )
    for field, name, known in tables:
        if name is not None and name not in known:
            raise ConfigError(
                f"no parser is called '{name}'",
                field=f"engine_kwargs.{field}",
                value=name,
                hint=nearest(name, known),
            )


@lru_cache(maxsize=64)
def forms_of(
    template: str,
    calls: str | None = None,
    thinking: str | None = None,
    asked_for: str | None = None,
) -> Forms:
    """The forms with these names, else those whose marks the chat template holds. `asked_for` names
    the form of calls that the prompt asks for, where the template shows no tools.

    gpt-oss's messages hold both: naming one of the two names the other.
    """
    found = _calls_in(template)
    if (name := calls or (asked_for if found is not HARMONY else None)) is not None:
        found = CALLS[_OTHER_CALLS.get(name, name)]
    thoughts = (
        THINKING[_OTHER_THOUGHTS.get(thinking, thinking)] if thinking else _thinking_in(template)
    )
    if thoughts is _HARMONY_THINKING or found is HARMONY:
        return Forms(HARMONY, _HARMONY_THINKING)
    return Forms(found, thoughts)


def _calls_in(template: str) -> CallForm:
    marks: tuple[tuple[str, CallForm], ...] = (
        ("<|channel|>analysis", HARMONY),
        ("<|constrain|>", HARMONY),
        ("<start_function_call>", _FUNCTION_GEMMA),
        ("<|tool_call>", _GEMMA4),
        (f"{_DSML}function_calls", _DEEPSEEK32),
        (f"{_DSML}tool_calls", _DEEPSEEK4),
        ("<minimax:tool_call>", _MINIMAX),
        ("<seed:tool_call>", _SEED),
        ("<arg_key>", _GLM),
        ("<parameter=", _QWEN3_CODER),
        ("<longcat_tool_call>", CALLS["longcat"]),
        ("<｜tool▁calls▁begin｜>", CALLS["deepseek_v3"]),
        ("[TOOL_CALLS]", CALLS["mistral"]),
        ("functools[", _PHI4),
        ("<|tool|>", _PHI4),
        ("<|tool_call|>", _GRANITE),
        ("<function_call>", CALLS["granite-20b-fc"]),
        ("<tool_calls>", CALLS["jamba"]),
        ("<|action_start|>", CALLS["internlm"]),
        ("<function_calls>", CALLS["olmo3"]),
        ("<tool_call>", HERMES),
        ("<|python_start|>", _LLAMA4_PYTHON),
        ("[func_name1(", _LLAMA4_PYTHON),
        ("<|python_tag|>", _LLAMA3),
        ('"parameters": dictionary of argument name', _LLAMA3),
    )
    return next((form for mark, form in marks if mark in template), HERMES)


def _thinking_in(template: str) -> Thinking | None:
    marks: tuple[tuple[str, Thinking], ...] = (
        ("<|channel|>analysis", _HARMONY_THINKING),
        ("<|channel>thought", _GEMMA_THINKING),
        ("<seed:think>", _SEED_THINKING),
        ("[THINK]", _MISTRAL_THINKING),
        ("Here is my thought process:", _GRANITE_THINKING),
        ("</think>", _THINK),
        ("<think>", _THINK),
    )
    return next((form for mark, form in marks if mark in template), None)
