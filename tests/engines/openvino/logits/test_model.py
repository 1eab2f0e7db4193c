"""The model's own probabilities, held against a direct computation on the same files."""

import numpy as np
import openvino as ov
import pytest

from penstock.demo import model_path
from penstock.engines.openvino.logits.model import LogitModel, Tree
from penstock.engines.openvino.model.gguf_ir import saved_ir
from penstock.engines.openvino.options import OpenVINOOptions
from random_model import TINY, write_random_model

IDS = np.random.default_rng(0).integers(5, 1000, 60).tolist()


@pytest.fixture(scope="module")
def model():
    return LogitModel(str(model_path("openvino") / "openvino_model.xml"), OpenVINOOptions())


def test_the_engines_properties_count():
    given = {"INFERENCE_NUM_THREADS": 1, "KV_CACHE_PRECISION": "f16", "prompt_lookup": True}
    path = str(model_path("openvino") / "openvino_model.xml")
    compiled = LogitModel(path, OpenVINOOptions(properties=given))._compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("KV_CACHE_PRECISION") == ov.Type.f16
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("grows", [True, False])
def test_attention_is_joined_with_the_cache_just_where_token_follows_token(exact, grows):
    path = str(model_path("openvino") / "openvino_model.xml")
    compiled = LogitModel(path, OpenVINOOptions(), exact, grows)._compiled
    kinds = {str(one.rt_info["layerType"].value) for one in compiled.get_runtime_model().get_ops()}
    assert ("ScaledDotProductAttention" in kinds) is grows


def test_many_tokens_behind_a_head_of_a_gguf_model(tmp_path, monkeypatch):
    """In its graph, cached heads are repeated rightly just where that is joined with attention."""
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    write_random_model(tmp_path / "tiny.gguf", TINY)
    path = str(saved_ir(tmp_path / "tiny.gguf") / "openvino_model.xml")
    ids = [token % 100 + 5 for token in IDS]
    tree = Tree(ids[40:], range(-1, 19), {19: [7, 8, 9]})
    found = []
    for grows in (True, False):
        reading = LogitModel(path, OpenVINOOptions(), grows=grows).begin()
        reading.add(ids[:40], silent=True)
        found.append(reading.trees([tree])[0][19])
    assert found[1] == pytest.approx(found[0], abs=1e-3)


@pytest.fixture(scope="module")
def expected():
    """Log probabilities after each token of IDS, shape [tokens, vocabulary]."""
    compiled = ov.Core().compile_model(
        str(model_path("openvino") / "openvino_model.xml"),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        },
    )
    size = len(IDS)
    logits = compiled.create_infer_request().infer(
        {
            "input_ids": np.array([IDS]),
            "attention_mask": np.ones((1, size), np.int64),
            "position_ids": np.arange(size)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
    )["logits"][0]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def check(scores, expected, first):
    for place, score in enumerate(scores, first):
        row = expected[place - 1]
        assert score.token == IDS[place]
        assert score.logprob == pytest.approx(row[IDS[place]], abs=1e-3)
        assert score.rank == 1 + (row > row[IDS[place]]).sum()
        assert [token for token, _ in score.top] == np.argsort(-row)[: len(score.top)].tolist()
        assert [value for _, value in score.top] == pytest.approx(
            np.sort(row)[::-1][: len(score.top)], abs=1e-3
        )


def test_every_token_but_the_first_has_a_score(model, expected):
    scores = model.begin().add(IDS, top=5)
    assert len(scores) == len(IDS) - 1
    check(scores, expected, 1)


def test_a_reading_goes_on_where_it_was(model, expected):
    reading = model.begin()
    assert reading.add(IDS[:20], silent=True) == []
    check(reading.add(IDS[20:21], top=3), expected, 20)
    check(reading.add(IDS[21:], top=3), expected, 21)


def test_without_top_there_are_no_alternatives(model):
    reading = model.begin()
    reading.add(IDS[:4], silent=True)
    assert [score.top for score in reading.add(IDS[4:8])] == [[], [], [], []]


def test_readings_do_not_see_each_other(model):
    one, other = model.begin(), model.begin()
    one.add(IDS[:10], silent=True)
    other.add(IDS[30:40], silent=True)
    (alone,) = model.begin().add(IDS[:10], silent=True) or [None]
    assert alone is None
    assert one.add([IDS[10]])[0].logprob != other.add([IDS[10]])[0].logprob


def test_sequences_begin_as_far_as_their_caches_have_room():
    path = str(model_path("openvino") / "openvino_model.xml")
    small = LogitModel(path, OpenVINOOptions(kv_cache_memory_bytes=1 << 20))  # 512 tokens
    first = small.begin_if_fits(200)
    assert first is not None
    assert small.begin_if_fits(100) is None  # nobody could grow
    second = small.begin_if_fits(50)
    assert second is not None
    second.length = 312
    assert not small.is_over
    second.length += 1
    assert small.is_over
    del first
    assert not small.is_over  # alone
    del second
    assert small.begin_if_fits(10_000) is not None
