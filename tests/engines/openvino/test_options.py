import shutil
from pathlib import Path

import pytest

from penstock.config import parse_options
from penstock.demo import model_path
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.options import OpenVINOOptions, reason_of
from penstock.errors import ConfigError, EngineStartError, UnsupportedError
from penstock.testing.asking import answer
from penstock.types import CompletionRequest, Sampling


def test_the_last_line_without_its_place():
    error = RuntimeError(
        "Check failed at src/a.cpp:12\n[10:11:12] /build/xgrammar/cpp/regex.cc:75: Lookahead is not"
        " supported\n\n"
    )
    assert reason_of(error) == "Lookahead is not supported"


def test_an_empty_message_gives_the_kind():
    assert reason_of(ValueError()) == "ValueError"


def test_the_reason_of_a_text_that_was_cut_within_a_character():
    text = "first line\nEBNF parser error at line 1: é".encode()
    error = UnicodeDecodeError("utf-8", text[:-1], len(text) - 2, len(text) - 1, "invalid")
    assert reason_of(error).startswith("EBNF parser error at line 1: ")


WORDS = "order number 48213 is late and the customer wants a refund now " * 30


def parsed(**given: object) -> OpenVINOOptions:
    return parse_options(OpenVINOOptions, given, "engine_kwargs")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"cache_eviction": {}}, "cache_eviction: .* set enable_prefix_caching to false"),
        (
            {"cache_eviction": {"start_size": 33}, "enable_prefix_caching": False},
            "cache_eviction.start_size: 33 is not a multiple of 32",
        ),
        (
            {"cache_eviction": {"max_cache_size": 160}, "enable_prefix_caching": False},
            "cache_eviction.max_cache_size: 160 is not above .* which is 160",
        ),
        (
            {"cache_eviction": {}, "enable_prefix_caching": False, "draft_model": "small"},
            "cache_eviction: does not go with speculation",
        ),
        (
            {"cache_eviction": {}, "enable_prefix_caching": False, "prompt_lookup": True},
            "cache_eviction: does not go with speculation",
        ),
        (
            {"cache_eviction": {}, "enable_prefix_caching": False, "deterministic": True},
            "cache_eviction",
        ),
        (
            {"sparse_attention": {"num_retained_start_tokens_in_cache": 100}},
            "sparse_attention.num_retained_start_tokens_in_cache: 100 is not a multiple",
        ),
        (
            {"sparse_attention": {"mode": "trishape", "xattention_stride": 8}},
            "sparse_attention.xattention_stride: is for the other mode",
        ),
        (
            {"sparse_attention": {"mode": "xattention", "xattention_stride": 7}},
            "sparse_attention.xattention_stride",
        ),
        ({"sparse_attention": {}, "deterministic": True}, "sparse_attention"),
        ({"prompt_lookup_max": 2}, "prompt_lookup_max: needs prompt_lookup"),
        ({"num_speculative_tokens": 2}, "needs prompt_lookup or a draft_model"),
        ({"draft_device": "CPU"}, "draft_device: needs a draft_model"),
        (
            {
                "draft_model": "d",
                "num_speculative_tokens": 2,
                "assistant_confidence_threshold": 0.5,
            },
            "not both",
        ),
    ],
)
def test_options_that_do_not_fit(given: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parsed(**given)


@pytest.mark.parametrize(
    "options",
    [
        {"cache_eviction": {"max_cache_size": 224}, "enable_prefix_caching": False},
        {
            "cache_eviction": {"max_cache_size": 224, "aggregation_mode": "sum"},
            "enable_prefix_caching": False,
        },
        {
            "sparse_attention": {
                "num_retained_start_tokens_in_cache": 32,
                "num_retained_recent_tokens_in_cache": 64,
            }
        },
        {"sparse_attention": {"mode": "xattention", "xattention_threshold": 0.5}},
    ],
)
async def test_a_long_text_is_answered(options: dict) -> None:
    engine = OpenVINOEngine("demo", engine_kwargs={"num_threads": 1, **options})
    await engine.start()
    request = CompletionRequest(
        prompt=WORDS, sampling=Sampling(max_tokens=48, ignore_eos=True, temperature=0)
    )
    try:
        ids = [i for d in [d async for d in engine.completions(request)] for i in d.token_ids]
    finally:
        await engine.stop()
    assert len(ids) == 48


async def test_prompts_at_which_an_eviction_fails_are_refused_by_their_length() -> None:
    options = {"cache_eviction": {"snapkv_window_size": 4}, "enable_prefix_caching": False}
    engine = OpenVINOEngine("demo", engine_kwargs={"num_threads": 1, **options})
    await engine.start()
    sampling = Sampling(max_tokens=2, ignore_eos=True, temperature=0)
    try:
        for size in range(31, 38):
            request = CompletionRequest(prompt=[40 + n for n in range(size)], sampling=sampling)
            if 33 <= size <= 35:
                with pytest.raises(UnsupportedError, match=f"33 to 35 tokens .* has {size}"):
                    await answer(engine, request)
            else:
                assert (await answer(engine, request)).usage.completion_tokens == 2
    finally:
        await engine.stop()


@pytest.mark.parametrize("device", ["NPU.7", "HETERO"])
async def test_a_missing_device_is_named(device: str) -> None:
    with pytest.raises(EngineStartError, match="this machine has CPU"):
        await OpenVINOEngine("demo", engine_kwargs={"device": device}).start()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"voices": {"ann": "ann.bin"}}, "voices"),
        ({"word_timestamps": True}, "word_timestamps"),
        ({"embedding_pooling": "cls"}, "embedding_pooling"),
        ({"embedding_normalize": False}, "embedding_normalize"),
        ({"query_instruction": "Find: "}, "query_instruction"),
        ({"image_urls": True}, "image_urls"),
    ],
)
async def test_an_option_of_models_of_another_kind_is_refused(options: dict, name: str) -> None:
    engine = OpenVINOEngine("demo", engine_kwargs=options)
    with pytest.raises(
        EngineStartError, match=f"'demo' is a language model, which takes no {name}"
    ):
        await engine.start()


@pytest.mark.parametrize(
    "name", ["openvino_model.bin", "openvino_tokenizer.xml", "openvino_detokenizer.xml"]
)
async def test_a_file_that_a_directory_lacks_is_named(tmp_path: Path, name: str) -> None:
    shutil.copytree(model_path("openvino"), tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    with pytest.raises(EngineStartError, match=f"model' lacks {name}: convert the model again"):
        await OpenVINOEngine(str(tmp_path / "model")).start()
