"""Embeddings of a real model, converted, against those of transformers."""

import numpy as np
import pytest

from penstock.engines.openvino import OpenVINOEngine
from penstock.types import EmbeddingRequest

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("default")]

TEXTS = [
    "The parcel came broken and nobody answers.",
    "My order arrived damaged, and support is silent.",
    "A penstock is the pipe that feeds a turbine.",
    "Größe, naïve, 東京 and 🙂",
    "word " * 200,
]


async def test_embeddings_are_those_of_transformers(minilm, tmp_path, monkeypatch):
    import torch
    import transformers

    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path))
    engine = OpenVINOEngine(minilm, engine_kwargs={"inference_precision": "f32"})
    await engine.start()
    try:
        got = np.array((await engine.embeddings(EmbeddingRequest(TEXTS))).vectors)
    finally:
        await engine.stop()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch.attention_mask[..., None]
    wanted = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
    cosines = (got * wanted).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosines.min() > 0.9999
    assert got[0] @ got[1] > got[0] @ got[2]
