"""Calls and thoughts of the real engine. A regular expression writes what a model would."""

import contextlib
import json
import re

import openvino_genai as genai
import pytest
from msgspec import structs

from penstock.demo import model_path
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.pipeline import Tokenizer
from penstock.errors import ConfigError
from penstock.types import ChatRequest, Sampling, StructuredOutput
from transcripts import TOOLS

KEPT = {"kv_cache_memory_bytes": 64 << 20}
ASK = [{"role": "user", "content": "My Solara 77 arrived broken."}]
SCHEMA = json.dumps({"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"]})


@contextlib.asynccontextmanager
async def running(model="demo", **options):
    engine = OpenVINOEngine(model, engine_kwargs={**KEPT, **options})
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def answer(engine, raw=None, *, stream=True, **request):
    if raw is not None:
        structured = StructuredOutput("regex", re.escape(raw).replace("\\\n", "\\n"))
        request["sampling"] = Sampling(temperature=0, max_tokens=300, structured=structured)
    deltas = [d async for d in engine.chat(ChatRequest(ASK, stream=stream, **request))]
    text, thought = ("".join(getattr(d, kind) for d in deltas) for kind in ("text", "reasoning"))
    calls = [part for delta in deltas for part in delta.tool_calls]
    arguments = "".join(part.arguments for part in calls)
    return text, thought, [part.name for part in calls if part.name], arguments, deltas[-1]


async def test_calls_survive_the_detokenizer():
    raw = 'Yes.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
    async with running() as engine:
        for stream in (True, False):
            text, _, names, arguments, last = await answer(engine, raw, stream=stream, tools=TOOLS)
            assert (text, names, json.loads(arguments)) == (
                "Yes.",
                ["weather"],
                {"city": "Zürich"},
            )
            assert last.finish_reason == "tool_calls"


async def test_a_named_parser_reads_the_form_of_another_model():
    raw = "Yes.[TOOL_CALLS]now{}"
    async with running(tool_call_parser="mistral") as engine:
        text, _, names, _, _ = await answer(engine, raw, tools=TOOLS)
        assert (text, names) == ("Yes.", ["now"])


async def test_a_template_of_ones_own_takes_the_place_of_the_models(tmp_path):
    (tmp_path / "own.jinja").write_text("{{ greeting }}, {{ messages[0]['content'] }}: ")
    request = ChatRequest(messages=[{"role": "user", "content": "Ann"}])
    kwargs = {
        "chat_template": str(tmp_path / "own.jinja"),
        "default_chat_template_kwargs": {"greeting": "Dear"},
    }
    async with running(**kwargs) as engine:
        assert engine.template.prompt(request) == "Dear, Ann: "
        other = structs.replace(request, chat_template_kwargs={"greeting": "Hi"})
        assert engine.template.prompt(other) == "Hi, Ann: "
        assert (await engine.answer("tokenizer_info", None)).chat_template.startswith(
            "{{ greeting }}"
        )
    (tmp_path / "own.jinja").write_text("{% if %}")
    for given, why in {
        "nowhere.jinja": "no file that can be read",
        kwargs["chat_template"]: "no Jinja template",
    }.items():
        with pytest.raises(ConfigError, match=rf"engine_kwargs.chat_template.*{why}"):
            OpenVINOEngine("demo", engine_kwargs={"chat_template": given})


async def test_a_schema_holds_after_thoughts_or_at_once():
    structured = StructuredOutput("json_schema", SCHEMA)
    sampling = Sampling(temperature=0, max_tokens=30, structured=structured)
    free = Sampling(temperature=0, max_tokens=4)
    messages = "{% for m in messages %}<|im_start|>user\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    begun = messages + "<|im_start|>assistant\n<think>\n"
    off = begun + "\n</think>\n\n"
    async with running() as engine:
        text, thought, *_ = await answer(engine, sampling=sampling, chat_template=off)
        assert (json.loads(text), thought) == ({"a": "b"}, "")
        text, thought, *_, last = await answer(engine, sampling=sampling, chat_template=begun)
        assert (text, last.finish_reason) == ("", "length")  # it never comes to an end
        text, start, *_ = await answer(engine, sampling=free, chat_template=begun)
        assert text == ""
        assert start
        assert len(thought) > len(start)
        unbegun = messages + "{# <think> #}<|im_start|>assistant\n"
        text, thought, *_ = await answer(engine, sampling=sampling, chat_template=unbegun)
        assert thought or json.loads(text) == {"a": "b"}


async def test_what_follows_a_trigger_is_held():
    structured = StructuredOutput("json_schema", SCHEMA, triggers=("category",))
    sampling = Sampling(temperature=0, max_tokens=40, structured=structured)
    async with running() as engine:
        text, *_ = await answer(engine, sampling=sampling)
        assert text.startswith('{"category{"a":"b"}')


def test_only_special_tokens_of_the_form_show():
    tokenizer = Tokenizer(genai.Tokenizer(str(model_path("openvino"))))
    (ids,) = tokenizer.encode(["<|im_start|>hi<|im_end|> x"], special_tokens=False)
    shown = tokenizer.shown(ids, ("<|im_start|>assistant", "<think>"))
    assert tokenizer.decode_each([shown, ids, []], [True, False, True]) == [
        "<|im_start|>hi x",
        "hi x",
        "",
    ]
    assert tokenizer.shown(ids, ()) == ids
    assert tokenizer.decode([ids[:1], ids[:2]], False) == ["<|im_start|>", "<|im_start|>hi"]


@pytest.mark.slow
async def test_a_gguf_model_thinks_as_its_parser_says(smollm2):
    async with running(smollm2, reasoning_parser="deepseek_r1") as engine:
        free = Sampling(temperature=0, max_tokens=12)
        text, thought, *_ = await answer(engine, sampling=free)
        assert text == ""
        assert thought
