"""The programs and commands of docs/ray.md, and the programs of docs/from-ray-*.md."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("ray")

import pyarrow as pa
import pyarrow.parquet as pq

import book
from penstock.demo import tickets_path
from ray_cluster import PATIENCE_S, free_port, own_cluster

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
ROWS = 20
# One program, whose parts wait for answers, as in a notebook.
NOTEBOOK = """
import ast, asyncio, inspect, sys
for part in sys.stdin.read().split("\\0"):
    code = compile(part, "page", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    waits = eval(code)
    if inspect.iscoroutine(waits):
        asyncio.run(waits)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with own_cluster(proxy_port=free_port()) as address:
        yield address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tickets_path().open(encoding="utf-8") as lines:
        tickets = list(islice(lines, ROWS))
    (tmp_path / "tickets.jsonl").write_text("".join(tickets))
    (tmp_path / "tickets").mkdir()
    pq.write_table(
        pa.Table.from_pylist([json.loads(line) for line in tickets]), tmp_path / "tickets/a.parquet"
    )
    for name in ("tickets", "llama"):
        config = {"model_loading_config": {"model_id": name, "model_source": "demo"}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML
    return tmp_path


def run(argv: list[str], folder: Path, cluster: str, said: str = "") -> None:
    book.run(argv, folder, said=said, timeout=PATIENCE_S, RAY_ADDRESS=cluster)


def test_the_programs(cluster: str, folder: Path) -> None:
    parts = "\0".join(book.blocks("docs/ray.md", "python"))
    parts = parts.replace("127.0.0.1:8000", f"127.0.0.1:{free_port()}").replace(
        "/data/", f"{folder}/"
    )
    run([sys.executable, "-W", "ignore", "-c", NOTEBOOK], folder, cluster, parts)
    assert pq.read_table(folder / "answers")["label"].null_count == 0


def test_the_commands(cluster: str, folder: Path) -> None:
    for command in book.commands("docs/ray.md", "penstock"):
        run(["bash", "-euc", command], folder, cluster)
    assert len((folder / "answers.jsonl").read_text().splitlines()) == ROWS


@pytest.mark.parametrize("page", book.FROM_RAY)
def test_a_program_that_comes_from_ray(page: str, cluster: str, folder: Path) -> None:
    for code in book.blocks(page, "python"):
        if not ray_has_llm():
            code = re.sub(r"(?m)^.*  # before\n", "", code)
        run([sys.executable, "-W", "ignore", "-c", NOTEBOOK], folder, cluster, code)


def ray_has_llm() -> bool:
    """Whether Ray's own libraries can be imported: before 2.60 they need transformers."""
    try:
        import ray.data.llm
        import ray.serve.llm  # noqa: F401
    except ImportError:
        return False
    return True
