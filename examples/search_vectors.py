"""Search a data set by meaning: embed a column into Parquet, embed the queries, compare.

    python examples/search_vectors.py MODEL DATA COLUMN QUERY...

MODEL is an embedding model, DATA any input of `penstock run`. The vectors have length 1, so their
dot product is the cosine. NumPy searches a few million vectors in memory; DuckDB (`pip install
duckdb`), where it is installed, searches the same file from SQL.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import penstock


def vectors(column: object) -> np.ndarray:
    """A column of lists of one size as an array, shape [rows][dimensions], without a copy."""
    lists = column.combine_chunks()  # type: ignore[attr-defined]
    return lists.values.to_numpy(zero_copy_only=False).reshape(len(lists), -1)


def main(model: str, data: str, column: str, *queries: str) -> None:
    """Print the three nearest rows of each query."""
    penstock.run(data, "vectors.parquet", model=model, embed=column, on_error="skip")
    asked = penstock.run(
        [{"query": query} for query in queries], model=model, embed="query", progress=False
    )
    wanted = np.array([row["embedding"] for row in asked.rows()], np.float32)

    table = pq.read_table("vectors.parquet")
    likeness = wanted @ vectors(table["embedding"]).T  # [queries][rows]
    for query, row in zip(queries, likeness, strict=True):
        print(f"numpy · {query}")
        for place in np.argsort(-row)[:3]:
            print(f"  {row[place]:.3f}  {table[column][int(place)].as_py()[:80]}")

    if find_spec("duckdb") is None:
        return
    import duckdb

    for query, vector in zip(queries, wanted, strict=True):
        print(f"duckdb · {query}")
        size = len(vector)
        found = duckdb.execute(
            f'SELECT "{column}", array_inner_product(embedding::FLOAT[{size}], ?::FLOAT[{size}])'
            " AS likeness FROM 'vectors.parquet' ORDER BY likeness DESC LIMIT 3",
            [vector.tolist()],
        ).fetchall()
        for text, score in found:
            print(f"  {score:.3f}  {text[:80]}")


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(f"usage: {Path(__file__).name} MODEL DATA COLUMN QUERY...")
    main(*sys.argv[1:])
