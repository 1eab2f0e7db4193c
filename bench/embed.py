"""What a job that embeds costs on top of the pipeline: rows/s of `penstock.run(…, embed=…)` over a
bare `TextEmbeddingPipeline`, beside sentence-transformers and a loop over ONNX Runtime as
fastembed's.

All embed the same texts (words drawn at random, lengths log-normal) with the same model in Hugging
Face's form, and sort them by length, in runs of 32. Each measurement is a fresh process, and the
clock runs from the first text to the last vector (ours: to the finished Parquet file), the model
being loaded. Needs the extra [convert]; sentence-transformers, and onnxruntime with a `model.onnx`
(--onnx), where they are installed.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import harness
from harness import Bar, Contestant

LEAST = 0.95
_RUN = 32
_WORDS = [
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world"),
    *("school", "state", "family", "student", "group", "country", "problem", "hand", "part"),
    *("place", "case", "week", "company", "system", "program", "question", "work"),
]


def texts(rows: int) -> list[str]:
    """The texts, of 25 words in the median."""
    draw = random.Random(0)
    sizes = (min(int(draw.lognormvariate(3.2, 0.7)) + 1, 180) for _ in range(rows))
    return [" ".join(draw.choices(_WORDS, k=size)) for size in sizes]


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__, rounds=3)
    options.add_argument("model", help="a directory in Hugging Face's form")
    options.add_argument("--onnx", help="the same model as a file for ONNX Runtime")
    options.add_argument("--rows", type=int, default=2048, help="default: %(default)s")
    args = options.parse_args()
    names = ["bare", "penstock"]
    names += ["sentence-transformers"] if find_spec("sentence_transformers") else []
    names += ["onnxruntime"] if args.onnx and find_spec("onnxruntime") else []
    converted = str(_converted(args.model))
    where = {"sentence-transformers": args.model, "onnxruntime": args.onnx}
    sides = [
        Contestant(name, partial(_run, name, where.get(name) or converted, args.rows, args.model))
        for name in names
    ]
    title = f"{args.rows} texts, {Path(args.model).name}"
    comparison = harness.compare(title, "rows/s", sides, args.rounds, warmups=0)
    ratio = comparison.ratio("penstock", "bare").median
    bars = [Bar("penstock.run over the bare pipeline", ratio, LEAST, at_least=True)]
    for name in names[2:]:
        ratio = comparison.ratio("penstock", name).median
        bars.append(Bar(f"penstock.run over {name}", ratio, 1.0, at_least=True))
    packages = ["openvino-genai", "sentence-transformers", "torch"]
    return harness.finish(args, [comparison], bars, packages=packages)


def _converted(model: str) -> Path:
    from penstock.engines.openvino.model.source import find_model

    return find_model(model, None, None).path


def _run(side: str, model: str, rows: int, source: str) -> float:
    command = [sys.executable, "-W", "ignore", __file__, "side", side, model, str(rows), source]
    with tempfile.TemporaryDirectory() as folder:  # in one that is known a job goes on
        usage = harness.command(command, cwd=folder)
    return rows / float(json.loads(usage.output.splitlines()[-1]))


def _measure(side: str, model: str, rows: int, source: str) -> float:
    """Seconds of one side."""
    given = texts(rows)
    embed = _SIDES[side](model, source)
    embed(given[:_RUN])
    began = time.perf_counter()
    embed(given)
    return time.perf_counter() - began


def _bare(model: str, _: str) -> Any:
    import openvino_genai as genai

    config = genai.TextEmbeddingPipeline.Config()
    config.pooling_type = genai.TextEmbeddingPipeline.PoolingType.MEAN
    config.normalize = True
    config.max_length = 256
    pipeline = genai.TextEmbeddingPipeline(model, "CPU", config)
    return partial(_in_runs, pipeline.embed_documents)


def _in_runs(embed: Any, given: list[str]) -> None:
    arranged = sorted(given, key=len)
    for start in range(0, len(arranged), _RUN):
        embed(arranged[start : start + _RUN])


def _sentence_transformers(model: str, _: str) -> Any:
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device="cpu")
    return partial(loaded.encode, batch_size=_RUN, normalize_embeddings=True)


def _onnxruntime(model: str, source: str) -> Any:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(source) / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    wanted = {one.name for one in session.get_inputs()}

    def embed(run: list[str]) -> Any:
        encoded = tokenizer.encode_batch(run)
        feed = {
            "input_ids": np.array([one.ids for one in encoded], np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
            "token_type_ids": np.array([one.type_ids for one in encoded], np.int64),
        }
        states = session.run(None, {name: feed[name] for name in feed if name in wanted})[0]
        mask = feed["attention_mask"][..., None]
        vectors = (states * mask).sum(1) / mask.sum(1) if states.ndim == 3 else states
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return partial(_in_runs, embed)


class _Penstock:
    """A job on an engine that runs already, as the other sides have their model loaded."""

    def __init__(self, model: str, _: str) -> None:
        import asyncio

        from penstock.engines.openvino.engine import OpenVINOEngine

        self._loop = asyncio.new_event_loop()
        self._engine = OpenVINOEngine(model)
        self._loop.run_until_complete(self._engine.start())
        self._jobs = 0

    def __call__(self, given: list[str]) -> None:
        import pyarrow as pa

        import penstock

        self._jobs += 1
        table = pa.table({"text": given})
        output = f"vectors-{self._jobs}.parquet"
        job = penstock.arun(table, output, engine=self._engine, embed="text", progress=False)
        result = self._loop.run_until_complete(job)
        assert result.counts.ok == len(given)


_SIDES: dict[str, Any] = {
    "bare": _bare,
    "penstock": _Penstock,
    "sentence-transformers": _sentence_transformers,
    "onnxruntime": _onnxruntime,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["side"]:
        print(_measure(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]))
        sys.exit(0)
    sys.exit(main())
