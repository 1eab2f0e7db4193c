"""What a job with images costs on top of the engine: rows/s of `penstock.run` over a bare OpenVINO
GenAI loop, and whether it gives the texts of `VLMPipeline`.

All sides ask the same about the same pictures, of a tiny vision-language model with random weights,
in f32. The bare side decodes with Pillow, adds every request, steps until all are done, and reads.
The clock runs from the first file to the last text (ours: from a Parquet file to the finished
output file), the model being loaded. Each measurement is a fresh process.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
import zipfile
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import harness
from harness import Bar, Contestant

ARCHIVE = Path(__file__).parents[1] / "tests" / "support" / "vision_model.zip"
QUESTION = "what is in picture {id}?"
F32 = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__, rounds=5)
    options.add_argument("--rows", type=int, default=256, help="pictures (default: %(default)s)")
    options.add_argument("--tokens", type=int, default=16, help="new tokens a row (default: 16)")
    options.add_argument("--side", type=int, default=224, help="pixels a side (default: 224)")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(ARCHIVE) as archive:
            archive.extractall(folder / "model")
        write_rows(folder, args.rows, args.side)
        wanted = texts(folder, "pipeline", args.tokens)
        same = sum(
            map(str.__eq__, wanted["texts"], texts(folder, "penstock", args.tokens)["texts"])
        )
        sides = [
            Contestant(side, partial(_speed, folder, side, args.tokens))
            for side in ("bare", "penstock")
        ]
        title = f"{args.rows} pictures of {args.side} × {args.side}, {args.tokens} new tokens"
        speed = harness.compare(title, "rows/s", sides, args.rounds, warmups=0)
    ratio = speed.ratio("penstock", "bare").median
    bars = [
        Bar("penstock.run over the bare loop", ratio, 0.9, at_least=True),
        Bar("rows with the text of VLMPipeline", same / args.rows, 1.0, at_least=True),
    ]
    return harness.finish(args, [speed], bars, packages=["openvino-genai", "pillow"])


def write_rows(folder: Path, rows: int, side: int) -> None:
    """A Parquet file of pictures, in Hugging Face's form."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    pictures = []
    for number in range(rows):
        # Patches of colour, so that the files have the sizes of pictures and not of noise.
        pixels = random.Random(number).randbytes(3 * 16 * 16)
        file = BytesIO()
        Image.frombytes("RGB", (16, 16), pixels).resize((side, side)).save(file, "JPEG")
        pictures.append({"bytes": file.getvalue(), "path": f"{number}.jpg"})
    table = pa.table({"id": range(rows), "picture": pictures})
    pq.write_table(table, folder / "rows.parquet")


def texts(folder: Path, side: str, tokens: int) -> dict[str, Any]:
    """What one side made, in a process of its own."""
    command = [sys.executable, __file__, "--run", side, str(folder), str(tokens)]
    found: dict[str, Any] = json.loads(harness.command(command).output.splitlines()[-1])
    return found


def _speed(folder: Path, side: str, tokens: int) -> float:
    found = texts(folder, side, tokens)
    return float(len(found["texts"]) / found["seconds"])


def _rows(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(folder / "rows.parquet").to_pylist()
    return rows


def _tensor(data: bytes) -> Any:
    import numpy as np
    import openvino as ov
    from PIL import Image

    return ov.Tensor(np.array(Image.open(BytesIO(data)).convert("RGB")))


def pipeline(folder: Path, tokens: int) -> tuple[list[str], float]:
    """`VLMPipeline`, one row after another."""
    import openvino_genai as genai

    pipe = genai.VLMPipeline(str(folder / "model"), "CPU", **F32)
    config = genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
    start = time.perf_counter()
    made = []
    for row in _rows(folder):
        images = [_tensor(row["picture"]["bytes"])]
        prompt = QUESTION.format(**row)
        made += pipe.generate(prompt, images=images, generation_config=config).texts
    return made, time.perf_counter() - start


def bare(folder: Path, tokens: int) -> tuple[list[str], float]:
    """The continuous batching pipeline alone: add everything, step, read."""
    import openvino_genai as genai

    from penstock.loadtest.bare_loop import scheduler

    pipe = genai.ContinuousBatchingPipeline(str(folder / "model"), scheduler(), "CPU", F32)
    config = genai.GenerationConfig(
        max_new_tokens=tokens, ignore_eos=True, do_sample=False, apply_chat_template=False
    )
    start = time.perf_counter()
    handles = [
        pipe.add_request(
            row["id"],
            f"USER: <image>{QUESTION.format(**row)} ASSISTANT:",  # GenAI adds the line end
            [_tensor(row["picture"]["bytes"])],
            config,
        )
        for row in _rows(folder)
    ]
    while pipe.has_non_finished_requests():
        pipe.step()
    answers = [[i for out in handle.read_all() for i in out.generated_ids] for handle in handles]
    made = pipe.get_tokenizer().decode(answers)
    return made, time.perf_counter() - start


def penstock(folder: Path, tokens: int) -> tuple[list[str], float]:
    """A whole job: Parquet in, JSONL file with a journal out."""
    from penstock import arun
    from penstock.engines.openvino.engine import OpenVINOEngine
    from penstock.loadtest.bare_loop import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS

    async def job() -> tuple[list[str], float]:
        options = {
            "max_num_seqs": MAX_NUM_SEQS,
            "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
            "inference_precision": "f32",
            "kv_cache_precision": "f32",
            "properties": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
        }
        engine = OpenVINOEngine(str(folder / "model"), engine_kwargs=options)
        await engine.start()
        start = time.perf_counter()
        await arun(
            folder / "rows.parquet",
            folder / "out.jsonl",
            engine=engine,
            prompt=QUESTION,
            image="picture",
            max_tokens=tokens,
            ignore_eos=True,
            fresh=True,
        )
        seconds = time.perf_counter() - start
        await engine.stop()
        with open(folder / "out.jsonl") as file:  # noqa: ASYNC230 (nothing else runs)
            return [json.loads(line)["response"] for line in file], seconds

    return asyncio.run(job())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run = {"bare": bare, "penstock": penstock, "pipeline": pipeline}[sys.argv[2]]
        answers, elapsed = run(Path(sys.argv[3]), int(sys.argv[4]))
        print(json.dumps({"texts": answers, "seconds": elapsed}))
        sys.exit()
    sys.exit(main())
