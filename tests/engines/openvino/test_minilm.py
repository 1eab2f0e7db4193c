"""Embeddings of a real model, converted, against those of transformers."""

import numpy as np
import pytest

from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.types import EmbeddingRequest

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("default")]


@pytest.fixture
def shared(tmp_path_factory, monkeypatch):
    """A cache for converted models that the tests share."""
    cache = tmp_path_factory.getbasetemp() / "minilm"
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(cache))


TEXTS = [
    "The parcel came broken and nobody answers.",
    "My order arrived damaged, and support is silent.",
    "A penstock is the pipe that feeds a turbine.",
    "Größe, naïve, 東京 and 🙂",
    "word " * 200,
]


# The default is bf16 where the processor has it.
@pytest.mark.parametrize(("options", "most"), [({"inference_precision": "f32"}, 1e-4), ({}, 2e-3)])
async def test_embeddings_are_those_of_transformers(minilm, shared, options, most):
    import torch
    import transformers

    engine = OpenVINOEngine(minilm, engine_kwargs=options)
    await engine.start()
    try:
        got = np.array((await engine.embeddings(EmbeddingRequest(TEXTS))).vectors)
        multi = (await engine.embeddings(EmbeddingRequest(TEXTS, vectors="multi"))).multi
    finally:
        await engine.stop()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch.attention_mask[..., None]
    wanted = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
    assert np.abs(got - wanted).max() <= most
    assert (got * wanted).sum(1).min() >= 1 - 5e-4  # the cosines
    assert got[0] @ got[1] > got[0] @ got[2]
    tokens = torch.nn.functional.normalize(states, dim=-1)
    for vectors, row, kept in zip(multi, tokens, batch.attention_mask.bool(), strict=True):
        assert np.abs(np.array(vectors) - row[kept].numpy()).max() <= 2 * most
        assert (np.array(vectors) * row[kept].numpy()).sum(1).min() >= 1 - 5e-4
