"""The same transcripts through vLLM's own parsers: what they read, ours read."""

import json

import pytest

from penstock.openai.parsers.table import forms_of
from transcripts import CALLS, THOUGHTS, TOOLS

pytest.importorskip("vllm")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes, and each form's marks as special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE(vocab={char: n for n, char in enumerate(alphabet)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    forms = [forms_of("", *t.parsers) for t in (*CALLS, *THOUGHTS)]
    marks = {mark for form in forms for mark in form.calls.marks}
    marks |= {mark for form in forms if form.thinking for mark in form.thinking.marks}
    marks |= {"<|im_start|>", "<|im_end|>", "<|channel>", "<|turn>", "<|tool_response>"}
    tokens.add_special_tokens(sorted(mark for mark in marks if " " not in mark))
    return PreTrainedTokenizerFast(tokenizer_object=tokens)


def request():
    return ChatCompletionRequest(
        messages=[{"role": "user", "content": "x"}], tools=TOOLS, tool_choice="auto"
    )


@pytest.mark.parametrize(
    "transcript",
    [t for t in (*CALLS, *THOUGHTS) if t.vllm],
    ids=lambda t: f"{t.parsers} {t.raw[:30]}",
)
def test_vllm_reads_a_transcript_alike(tokenizer, transcript):
    tools, thinking = transcript.parsers
    text, reasoning, calls = transcript.raw, "", []
    if thinking is not None:
        parser = ReasoningParserManager.get_reasoning_parser(thinking)(tokenizer)
        reasoning, text = parser.extract_reasoning(text, request())
    if tools is not None:
        asked = request()
        parser = ToolParserManager.get_tool_parser(tools)(tokenizer, asked.tools)
        found = parser.extract_tool_calls(text or "", parser.adjust_request(asked))
        text = found.content
        calls = [(c.function.name, json.loads(c.function.arguments)) for c in found.tool_calls]
    assert (text or "").strip() == transcript.text
    assert (reasoning or "").strip() == transcript.reasoning
    assert calls == [*transcript.calls]
