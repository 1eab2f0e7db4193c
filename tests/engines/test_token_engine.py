"""Thoughts and calls on engines that continue tokens, tried on the simulated engine's level."""

import contextlib
import json
import threading
from typing import Any

import msgspec
import pytest
from jsonschema_rs import Draft202012Validator

from penstock.engines.base import Capabilities
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.templates.chat_template import ChatTemplate
from penstock.engines.token_engine import GenerateRequest
from penstock.errors import ConfigError, UnsupportedError
from penstock.types import (
    ChatRequest,
    DecideRequest,
    Delta,
    PredicateQuestion,
    Sampling,
    StructuredOutput,
    TokenizeRequest,
    Usage,
)
from transcripts import TOOLS
from vision_models import image_file, image_part

THINKS = (
    "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{{ tools }}"
    "{{ '</think>' if off else '<think>' }}\n"
)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ASK = [{"role": "user", "content": "x"}]


class Scripted(SimulatedEngine):
    """Answers with one text, a character a delta, and keeps what it was asked."""

    answer_text = ""

    async def continue_prompt(self, request: GenerateRequest):
        self.asked = request
        for char in self.answer_text:
            yield [Delta(text=char, token_ids=(1,))]
        yield [Delta(finish_reason="stop", usage=Usage(1, len(self.answer_text)))]


def scripted(template: str, answer: str, **options: str) -> Scripted:
    engine = Scripted(engine_kwargs=options)
    engine.template = ChatTemplate(template)
    engine.answer_text = answer
    return engine


async def asked(engine, **request):
    deltas = [d async for d in engine.chat(ChatRequest(ASK, **request))]
    calls: dict[int, tuple[str, str]] = {}
    for part in (part for delta in deltas for part in delta.tool_calls):
        name, arguments = calls.get(part.number, ("", ""))
        calls[part.number] = (part.name or name, arguments + part.arguments)
    text, thought = ("".join(getattr(d, kind) for d in deltas) for kind in ("text", "reasoning"))
    return text, thought, [*calls.values()], deltas[-1].finish_reason


async def test_thoughts_begun_by_the_prompt_are_no_text():
    engine = scripted(THINKS, "Hm.\n</think>\n\nFour.")
    assert await asked(engine) == ("Four.", "Hm.", [], "stop")
    assert engine.asked.marks == ("<think>", "</think>")
    engine.answer_text = "Four."
    assert await asked(engine, chat_template_kwargs={"off": True}) == ("Four.", "", [], "stop")
    ids = list(b"x")
    engine.answer_text = "Hm.</think>Four."
    assert (await asked(engine, prompt_token_ids=ids))[:2] == ("Four.", "Hm.")
    assert engine.asked.prompt == ids


async def test_calls_follow_thoughts_and_only_offered_tools_are_called():
    call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    engine = scripted(THINKS, f"Hm.</think>{call}")
    assert await asked(engine, tools=TOOLS) == ("", "Hm.", [("now", "{}")], "tool_calls")
    assert "<tool_call>" in engine.asked.marks
    assert (await asked(engine, tools=TOOLS[:1]))[0] == call
    assert (await asked(engine, tools=TOOLS, tool_choice="none"))[0] == call
    assert (await asked(engine))[0] == call


async def test_named_parsers_go_before_the_template():
    answer = "[TOOL_CALLS]now{}"
    engine = scripted("{{ tools }}", answer, tool_call_parser="mistral")
    assert (await asked(engine, tools=TOOLS))[2] == [("now", "{}")]
    engine = scripted(THINKS, "<think>Hm.</think>", reasoning_parser="identity")
    assert (await asked(engine))[0] == "<think>Hm.</think>"
    with pytest.raises(ConfigError, match="Did you mean 'mistral'"):
        SimulatedEngine(engine_kwargs={"tool_call_parser": "mistrall"})


async def test_gpt_oss_messages_are_read_without_tools_too():
    answer = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>4."
    )
    engine = scripted("<|start|>assistant{{ '<|channel|>analysis' if 0 }}", answer)
    assert (await asked(engine))[:2] == ("4.", "Hm.")


async def test_a_constraint_begins_after_the_thoughts():
    engine = SimulatedEngine()
    engine.template = ChatTemplate(THINKS)
    await engine.start()
    sampling = Sampling(structured=StructuredOutput("json_schema", json.dumps(SCHEMA)))
    text, thought, _, reason = await asked(engine, sampling=sampling)
    assert (set(json.loads(text)), reason) == ({"a"}, "stop")
    assert thought
    forced = await asked(engine, tools=TOOLS[1:], tool_choice="required")
    assert forced[0] == ""
    assert forced[1] != ""
    assert (forced[2][0][0], forced[3]) == ("now", "tool_calls")


async def test_a_constraint_knows_where_thoughts_may_begin():
    structured = StructuredOutput("json_schema", json.dumps(SCHEMA))
    sampling = Sampling(structured=structured)
    engine = scripted("{# <think> #}", "{}")
    await asked(engine, sampling=sampling)
    asked_for = engine.asked.sampling.structured
    assert asked_for is not None
    assert (asked_for.after, asked_for.openers) == (("</think>",), ("<think>",))
    engine = scripted(THINKS, "{}")
    await asked(engine, sampling=sampling)
    assert engine.asked.sampling.structured == StructuredOutput(
        "json_schema", json.dumps(SCHEMA), after=("</think>",)
    )
    await asked(engine, sampling=sampling, chat_template_kwargs={"off": True})
    assert engine.asked.sampling.structured == structured


STRICT: Any = [
    {"type": "function", "function": {"name": "a", "strict": True, "parameters": SCHEMA}}
]


async def held(template="", choice=None, tools: Any = STRICT, triggers=True, **given):
    """The constraint of a request with these tools."""
    engine = scripted(template, "Yes.", **given)
    engine.capabilities = Capabilities(
        frozenset({"chat"}),
        100,
        1,
        structured=frozenset({"json_schema"}),
        thoughts_first=True,
        triggers=triggers,
    )
    await asked(engine, tools=tools, tool_choice=choice)
    return engine.asked.sampling.structured


async def test_calls_of_strict_functions_follow_their_schemas():
    structured = await held(tools=[*STRICT, {"type": "function", "function": {"name": "b"}}])
    assert structured is not None
    assert structured.triggers == ("<tool_call>",)
    calls = Draft202012Validator(json.loads(structured.spec))
    assert calls.is_valid({"name": "a", "arguments": {"a": 1}})
    assert not calls.is_valid({"name": "a", "arguments": {"a": "1"}})
    assert calls.is_valid({"name": "b", "arguments": {"any": []}})
    assert not calls.is_valid({"name": "c", "arguments": {}})
    after = await held(THINKS, choice="auto")
    assert after is not None
    assert (after.after, after.triggers) == (("</think>",), ("<tool_call>",))


async def test_calls_are_free_where_nothing_is_strict_or_the_form_has_no_marks():
    loose = {**STRICT[0]["function"], "strict": False}
    assert await held(tools=[{"type": "function", "function": loose}]) is None
    assert await held(choice="none") is None
    assert await held(triggers=False) is None
    for parser in ("llama3_json", "mistral", "phi4_mini_json"):
        assert await held(tool_call_parser=parser) is None
    forced = await held(choice="required")
    assert forced is not None
    assert forced.triggers == ()


async def test_an_engine_that_cannot_think_first_says_so_by_name():
    engine = scripted(THINKS, "{}")
    engine.capabilities = Capabilities(
        frozenset({"chat"}), 100, 1, structured=frozenset({"json_schema"})
    )
    sampling = Sampling(structured=StructuredOutput("json_schema", json.dumps(SCHEMA)))
    with pytest.raises(UnsupportedError, match="simulated engine cannot constrain") as caught:
        await asked(engine, sampling=sampling)
    assert caught.value.param == "response_format"
    await asked(engine, sampling=sampling, chat_template_kwargs={"off": True})


@pytest.mark.parametrize(
    ("begun", "answer", "text", "thought"),
    [
        ("<think>It is", " four.</think>Four.", "Four.", "four."),
        ("<think>Hm.</think>It is", " four </think>.", " four </think>.", ""),
        ("It is", " four.", " four.", ""),
    ],
)
async def test_an_answer_that_continues_a_message_continues_its_thoughts(
    begun, answer, text, thought
):
    engine = scripted("{% for m in messages %}{{ m['content'] }}{% endfor %}{# <think> #}", answer)
    last = {"role": "assistant", "content": begun}
    request = ChatRequest([*ASK, last], add_generation_prompt=False, continue_final_message=True)
    deltas = [delta async for delta in engine.chat(request)]
    assert "".join(delta.text for delta in deltas) == text
    assert "".join(delta.reasoning for delta in deltas) == thought


@pytest.mark.parametrize(
    ("off", "answer", "count"), [(False, "Hm.\n</think>Four.", 3), (True, "4", 0)]
)
async def test_the_tokens_of_thoughts_are_counted(off, answer, count):
    engine = scripted(THINKS, answer)  # whose tokens are bytes
    request = ChatRequest(ASK, n=2, chat_template_kwargs={"off": off})
    usages = [d.usage or Usage() async for d in engine.chat(request) if d.finish_reason]
    assert [usage.reasoning_tokens for usage in usages] == [count, count]
    assert {usage.completion_tokens for usage in usages} == {len(answer)}


async def test_choices_of_neighbouring_seeds_are_others():
    engine = SimulatedEngine()
    await engine.start()

    async def answers(seed, n):
        request = ChatRequest(ASK, Sampling(temperature=1.0, seed=seed, max_tokens=16), n=n)
        texts = [""] * n
        async for delta in engine.chat(request):
            texts[delta.index] += delta.text
        return texts

    drawn = [text for seed in range(-1, 3) for text in await answers(seed, 3)]
    assert len(set(drawn)) == 12
    assert drawn[:3] == await answers(-1, 3)
    assert drawn[0::3] == [text for seed in range(-1, 3) for text in await answers(seed, 1)]


async def test_tools_that_stand_in_the_prompt_as_text_are_called_in_its_form():
    answer = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    engine = scripted("{% for m in messages %}{{ m['content'] }}{% endfor %}[TOOL_CALLS]", answer)
    assert (await asked(engine, tools=TOOLS))[2] == [("now", "{}")]


async def test_an_engine_that_sees_need_not_decide_about_images():
    engine = SimulatedEngine()
    engine.capabilities = msgspec.structs.replace(engine.capabilities, inputs=("text", "image"))
    parts = [image_part(image_file(1)), {"type": "text", "text": "x"}]
    request = DecideRequest([{"role": "user", "content": parts}], (PredicateQuestion("Red?"),))
    with pytest.raises(UnsupportedError, match="makes no decisions about images"):
        await engine.decide(request)


@pytest.mark.parametrize(("messages", "aside"), [(1, False), (1000, False), (1001, True)])
async def test_a_thread_renders_many_messages(messages, aside):
    threads = []

    class Noting(ChatTemplate):
        def render(self, *args, **options):
            threads.append(threading.get_ident())
            return super().render(*args, **options)

    engine = scripted(THINKS, "</think>Four.")
    await engine.start()
    engine.template = Noting(THINKS)
    chat = ChatRequest(ASK * messages)
    assert "".join([d.text async for d in engine.chat(chat)]) == "Four."
    with contextlib.suppress(UnsupportedError):  # it makes no tokens
        await engine.answer("tokens", TokenizeRequest(chat=chat))
    question = PredicateQuestion("Is it?", "q")
    await engine.answer("decide", DecideRequest(chat.messages, (question,)))
    here = threading.get_ident()
    assert len(threads) >= 3
    assert {one != here for one in threads} == {aside}
