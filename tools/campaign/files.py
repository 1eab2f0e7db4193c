"""Input files that are damaged at random: rows and error rows, or an error that names the file."""

from __future__ import annotations

import gzip
import random
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
from mutations import DAMAGES
from promises import Promise

import penstock
from penstock.errors import PenstockError


def campaign(seed: int, deadline: float, folder: Path) -> list[Promise]:
    """Good files of each form, with one to three damages."""
    promise = Promise(
        "A damaged input file gives rows, error rows, or an error that names it or its column"
    )
    chance = random.Random(seed)
    good = _good(folder)
    while time.monotonic() < deadline:
        original = chance.choice(good)
        data = original.read_bytes()
        for _ in range(chance.randrange(1, 4)):
            if data:
                data = chance.choice(list(DAMAGES.values()))(data, chance)
        path = folder / f"damaged-{original.name}"
        path.write_bytes(data)
        try:
            result = penstock.run(str(path), model="simulated", prompt="{text}", progress=False)
        except PenstockError as error:
            named = path.name in str(error) or "no column 'text'" in str(error)
            promise.held("refused") if named else promise.broke(f"{path.name}: {error}")
        except BaseException as error:
            promise.broke(f"{path.name}: {type(error).__name__}: {error}")
        else:
            promise.held("error rows" if result.counts.errors else "rows")
    return [promise]


def _good(folder: Path) -> list[Path]:
    table = pa.table({"id": range(50), "text": [f"text {number} é\n" for number in range(50)]})
    paths = [
        folder / name
        for name in ("in.jsonl", "in.jsonl.gz", "in.csv", "in.parquet", "in.arrow", "in.feather")
    ]
    lines = "".join(
        f'{{"id": {number}, "text": "text {number} é"}}\n' for number in range(50)
    ).encode()
    paths[0].write_bytes(lines)
    paths[1].write_bytes(gzip.compress(lines))
    pyarrow.csv.write_csv(table, paths[2])
    pyarrow.parquet.write_table(table, paths[3])
    with pa.ipc.new_file(str(paths[4]), table.schema) as writer:
        writer.write_table(table)
    pyarrow.feather.write_feather(table, str(paths[5]))
    return paths
