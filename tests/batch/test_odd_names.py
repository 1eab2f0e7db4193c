"""Jobs whose files have names that are no text, and options that are none."""

import os
from typing import Any

import pytest

from penstock.batch.job.job import Job
from penstock.errors import ConfigError

ODD = os.fsdecode(b"caf\xe9")


def job(source, output, **options):
    return Job(
        source, output, engine="simulated", model="x", prompt="{text}", max_tokens=2, **options
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    with open(f"{tmp_path}/data/{ODD}.jsonl", "w") as file:
        file.write('{"text": "a"}\n{"text": \n')
    return tmp_path


@pytest.mark.parametrize("name", [f"{ODD}.jsonl", f"{ODD}.csv", f"{ODD}.parquet", f"{ODD}/"])
async def test_a_job_is_run_found_complete_and_read(folder, name):
    output = f"{folder}/{name}"
    for source in (f"{folder}/data", f"{folder}/data/{ODD}.jsonl"):
        result = await job(source, output, fresh=True).arun()
        assert (result.counts.rows, result.counts.failed) == (2, 1)
        assert r"caf\\udce9.jsonl:2:" in str(list(result.rows())[1])
        assert (await job(source, output).arun()).already_complete
    tried = await job(f"{folder}/data/{ODD}.jsonl", output, retry_failed=True).arun()
    assert tried.counts.rows == 2
    following = await job(output, f"{folder}/next.jsonl", result_prefix="next_").arun()
    assert following.counts.rows == 2


async def test_dead_letters(folder):
    letters = f"{folder}/{ODD}-failed.jsonl"
    for output in (f"{folder}/{ODD}.jsonl", f"{folder}/{ODD}.parquet"):
        result = await job(f"{folder}/data", output, dead_letter=letters, fresh=True).arun()
        assert result.counts.failed == 1
        with open(letters) as file:  # noqa: ASYNC230
            assert "input_error" in file.read()


@pytest.mark.parametrize(
    "name", ["prompt", "system", "model", "messages", "adapter", "result_prefix", "stop"]
)
async def test_options_that_are_no_text_are_named(folder, name):
    options: dict[str, Any] = {
        "engine": "simulated",
        "model": "x",
        "prompt": "{text}",
        name: f"x{ODD}",
    }
    given = Job(f"{folder}/data", None, **options)
    with pytest.raises(ConfigError, match=f"{name}: is no UTF-8 at character 5"):
        await given.arun()
