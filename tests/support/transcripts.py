"""What models write, by the form of their calls and thoughts."""

from __future__ import annotations

from typing import Any, NamedTuple

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "exact": {"type": "boolean"},
                    "hours": {"type": "array", "items": {"type": "integer"}},
                    "place": {"type": "object"},
                },
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]
ZURICH = {"city": "Zürich <b>", "days": 3}
Calls = tuple[tuple[str, dict[str, Any]], ...]


class Transcript(NamedTuple):
    """One raw answer and what it means. `parsers` are the names of the tool and the reasoning
    parser; `vllm` False: vLLM's own parser reads it differently.
    """

    parsers: tuple[str | None, str | None]
    raw: str
    text: str = ""
    calls: Calls = ()
    reasoning: str = ""
    vllm: bool = True


_CALL = '{"name": "weather", "arguments": {"city": "Zürich <b>", "days": 3}}'
_NOW = '{"name": "now", "arguments": {}}'
_PARAMETERS = '{"name": "weather", "parameters": {"city": "Zürich <b>", "days": 3}}'
_BOTH: Calls = (("weather", ZURICH), ("now", {}))
_ONE: Calls = (("weather", ZURICH),)
_XML = (
    "<function=weather>\n<parameter=city>\nZürich <b>\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>"
)
_D = "｜DSML｜"

CALLS = [
    Transcript(("hermes", None), f"<tool_call>\n{_CALL}\n</tool_call>", calls=_ONE),
    Transcript(
        ("hermes", None),
        f"I look.\n<tool_call>\n{_CALL}\n</tool_call>\n<tool_call>\n{_NOW}\n</tool_call>",
        "I look.",
        _BOTH,
    ),
    Transcript(("llama3_json", None), _PARAMETERS, calls=_ONE),
    Transcript(("llama3_json", None), f"<|python_tag|>{_PARAMETERS}", calls=_ONE),
    Transcript(("llama3_json", None), f"{_PARAMETERS}; {_NOW}", calls=_BOTH),
    Transcript(("llama3_json", None), "In JSON {1, 2} is nothing.", "In JSON {1, 2} is nothing."),
    Transcript(("pythonic", None), "[weather(city='Zürich <b>', days=3), now()]", calls=_BOTH),
    Transcript(("pythonic", None), "[now(at=1e999)]", "[now(at=1e999)]", vllm=False),
    Transcript(
        ("llama4_pythonic", None),
        "<|python_start|>[weather(city='Zürich <b>', days=3)]<|python_end|>",
        calls=_ONE,
    ),
    Transcript(("mistral", None), f"[TOOL_CALLS][{_CALL}, {_NOW}]", calls=_BOTH, vllm=False),
    Transcript(
        ("mistral", None),
        'Yes.[TOOL_CALLS]weather[ARGS]{"city": "Zürich <b>", "days": 3}[TOOL_CALLS]now{}',
        "Yes.",
        _BOTH,
    ),
    Transcript(("qwen3_coder", None), f"<tool_call>\n{_XML}\n</tool_call>", calls=_ONE),
    Transcript(
        ("qwen3_xml", None),
        f"I look.\n\n<tool_call>\n{_XML}\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "I look.",
        _BOTH,
    ),
    Transcript(
        ("deepseek_v3", None),
        "Yes.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Zürich <b>", "days": 3}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
        "Yes.",
        _BOTH,
    ),
    Transcript(
        ("deepseek_v31", None),
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Zürich <b>",'
        ' "days": 3}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        calls=_BOTH,
    ),
    Transcript(
        ("deepseek_v32", None),
        f'<{_D}function_calls>\n<{_D}invoke name="weather">\n'
        f'<{_D}parameter name="city" string="true">Zürich <b></{_D}parameter>\n'
        f'<{_D}parameter name="days" string="false">3</{_D}parameter>\n</{_D}invoke>\n'
        f'<{_D}invoke name="now">\n</{_D}invoke>\n</{_D}function_calls>',
        calls=_BOTH,
    ),
    Transcript(("phi4_mini_json", None), f"functools[{_CALL}, {_NOW}]", calls=_BOTH),
    Transcript(("granite", None), f"<|tool_call|>[{_CALL}, {_NOW}]", calls=_BOTH),
    Transcript(("granite", None), f"<tool_call>[{_CALL}]", calls=_ONE),
    Transcript(("granite4", None), f"<tool_call>\n{_CALL}\n</tool_call>", calls=_ONE),
    Transcript(
        ("granite-20b-fc", None), f"<function_call> {_CALL} <function_call> {_NOW}", calls=_BOTH
    ),
    Transcript(("jamba", None), f"<tool_calls>[\n    {_CALL}\n]</tool_calls>", calls=_ONE),
    Transcript(
        ("internlm", None),
        f"<|action_start|><|plugin|>\n{_PARAMETERS}<|action_end|>",
        calls=_ONE,
    ),
    Transcript(("xlam", None), f"[{_CALL}, {_NOW}]", calls=_BOTH),
    Transcript(
        ("glm45", None),
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Zürich <b></arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
        calls=_ONE,
    ),
    Transcript(
        ("minimax_m2", None),
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Zürich <b>'
        '</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>',
        calls=_ONE,
    ),
    Transcript(("seed_oss", None), f"<seed:tool_call>\n{_XML}\n</seed:tool_call>", calls=_ONE),
    Transcript(
        ("functiongemma", None),
        "<start_function_call>call:weather{city:<escape>Zürich <b><escape>,"
        "days:<escape>3<escape>}<end_function_call>",
        calls=_ONE,
    ),
    Transcript(
        ("gemma4", "gemma4"),
        '<|channel>thought\nA city.\n<channel|><|tool_call>call:weather{city:<|"|>Zürich <b><|"|>,'
        "days:3}<tool_call|>",
        calls=_ONE,
        reasoning="A city.",
    ),
    Transcript(
        ("openai", "openai_gptoss"),
        "<|channel|>analysis<|message|>They ask.<|end|><|start|>assistant<|channel|>commentary"
        " to=functions.weather <|constrain|>json<|message|>"
        '{"city": "Zürich <b>", "days": 3}<|call|>',
        calls=_ONE,
        reasoning="They ask.",
        vllm=False,
    ),
    Transcript(
        ("openai", "openai_gptoss"),
        "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>"
        "Four.<|return|>",
        "Four.",
        reasoning="Easy.",
        vllm=False,
    ),
]

THOUGHTS = [
    Transcript(
        (None, "deepseek_r1"), "<think>\nHm < 4.\n</think>\n\nFour.", "Four.", (), "Hm < 4."
    ),
    Transcript((None, "deepseek_r1"), "Hm.\n</think>\n\nFour.", "Four.", (), "Hm."),
    Transcript((None, "deepseek_r1"), "Hm, what", "", (), "Hm, what"),
    Transcript((None, "qwen3"), "<think>\nHm.\n</think>\n\nFour.", "Four.", (), "Hm."),
    Transcript((None, "qwen3"), "<think>\n\n</think>\n\nFour.", "Four."),
    Transcript((None, "qwen3"), "Four < five", "Four < five", vllm=False),
    Transcript(
        (None, "granite"),
        "Here is my thought process: Hm. Here is my response: Four.",
        "Four.",
        (),
        "Hm.",
    ),
    Transcript((None, "granite"), "Here it is.", "Here it is."),
    Transcript((None, "mistral"), "[THINK]Hm.[/THINK]Four.", "Four.", (), "Hm."),
    Transcript((None, "identity"), "<think>Hm.</think>", "<think>Hm.</think>", vllm=False),
    Transcript(
        ("hermes", "qwen3"),
        f"<think>\nA city.\n</think>\n\nI look.\n<tool_call>\n{_CALL}\n</tool_call>",
        "I look.",
        _ONE,
        "A city.",
    ),
]

BROKEN = [
    Transcript(("hermes", None), raw, raw)
    for raw in (
        "<tool_call>",
        "<tool_call>\n{",
        "a < b <tool",
        '<tool_call>\n{"name": "weather", "argum',
        "<tool_call>\n[1]\n</tool_call>",
        '<tool_call>\n{"name": "nobody", "arguments": {}}\n</tool_call>',
    )
] + [
    Transcript((name, None), raw, raw)
    for name, raw in (
        ("llama3_json", '{"name": "weather"'),
        ("llama3_json", '{"name": "nobody", "parameters": {"a": 1}}'),
        ("pythonic", "[weather(city='Zü"),
        ("pythonic", "[nobody()] and [link](to) [1, 2]"),
        ("pythonic", "[weather(1)]"),
        ("mistral", "[TOOL_CALLS] nothing"),
        ("mistral", "[TOOL_CALLS]nobody{}"),
        ("mistral", "[TOOL_CALLS][1]"),
        ("deepseek_v3", "<｜tool▁calls▁begin｜>"),
        ("deepseek_v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>wea"),
        ("qwen3_coder", "<tool_call>\n<function=weather>\n<parameter=city>\nZ"),
        ("qwen3_coder", "<tool_call>\n<function=nobody>\n</function>\n</tool_call>"),
        ("glm45", "<tool_call>weather\n<arg_key>city</arg_key>"),
        ("gemma4", '<|tool_call>call:weather{city:<|"|>Z'),
        ("gemma4", "<|tool_call>what<tool_call|>"),
        ("phi4_mini_json", "functools[] are functions"),
        ("granite", "<|tool_call|>none"),
        ("openai", "<|channel|>commentary to=functions.wea"),
        ("xlam", "see [1] and [a](b)"),
    )
]
