"""A processor's rows between processes: each part, as Ray Data calls it."""

import asyncio

import pytest

from penstock.batch import HttpRequestProcessorConfig, build_processor
from penstock.batch.pipeline.processor_rows import (
    Beginning,
    Carried,
    Ending,
    unpack_row as unpack,
)
from penstock.batch.pipeline.stage_chain import StageProcess
from penstock.batch.stages.base import StatefulStage
from penstock.batch.write.tables import block
from penstock.errors import JobError, UpstreamError


class Half:
    async def process(self, row):
        return {"half": row["x"] // 2} if row["x"] % 2 == 0 else {}[row["x"]]


async def through(rows, keep=True, postprocess=None):
    begun = Beginning(lambda row: {"x": row["id"]}, keep=keep)(rows)
    made = await StageProcess("Half", StatefulStage(Half), 4, keep=keep)(begun)
    return Ending(postprocess, keep=keep)(made)


async def test_batches_of_good_and_of_bad_rows_agree():
    def postprocess(row):
        return {"half": row["half"]}

    good = block(await through([{"id": 2}, {"id": 4}], postprocess=postprocess))
    mixed = block(await through([{"id": 1}, {"id": 4}], postprocess=postprocess))
    bad = block(await through([{"id": 1}, {"id": 3}], postprocess=postprocess))
    assert (
        sorted(good.column_names) == sorted(mixed.column_names) == ["error", "half", "id", "status"]
    )
    assert sorted(bad.column_names) == ["error", "id", "status"]
    for other in (mixed, bad):
        for name in ("status", "error"):
            assert other.schema.field(name).type == good.schema.field(name).type
    assert mixed["half"].to_pylist() == [None, 2]
    assert mixed["id"].to_pylist() == [1, None]
    assert [error["type"] for error in bad["error"].to_pylist()] == ["user_code_error"] * 2


async def test_without_error_rows_output_is_what_was_made():
    assert await through([{"id": 2}], keep=False) == [{"id": 2, "x": 2, "half": 1}]
    assert block(await through([{"id": 2}], keep=False)).column_names == ["id", "x", "half"]
    with pytest.raises(JobError, match="a row failed at Half: KeyError: 1"):
        await through([{"id": 1}], keep=False)


async def test_what_an_endpoint_said_comes_with_the_error():
    class Refused:
        async def process(self, row):
            raise UpstreamError("no", http_status=422, body="because")

    begun = Beginning(None, keep=True)([{"id": 1}])
    (row,) = Ending(None, keep=True)(
        await StageProcess("S", StatefulStage(Refused), 4, keep=True)(begun)
    )
    assert (row["error"]["status"], row["error"]["body"]) == (422, "because")


@pytest.mark.parametrize("own", [["text"], [0.1234567890123, None, 2**30 + 1], [{"a": 1}, [2]]])
def test_a_list_of_ones_own_under_the_name_of_vectors_stays_one(own):
    begun = Beginning(None, keep=True)([{"embeddings": own}])
    (row,) = Ending(None, keep=True, ray_columns=True)(begun)
    assert row["embeddings"] == own


async def test_a_row_keeps_values_that_no_table_can_hold():
    (packed,) = Beginning(None, keep=True)([{"id": 2, "odd": {1, 2}}])
    assert unpack(packed).columns["odd"] == {1, 2}


@pytest.mark.parametrize(("concurrency", "share"), [(None, 6000), (4, 1500), ((1, 4), 1500)])
async def test_processes_keep_to_a_rate_together(concurrency, share):
    config = HttpRequestProcessorConfig(
        url="http://127.0.0.1:1/", qps=100, http_request_stage={"concurrency": concurrency}
    )
    ((name, stage),) = build_processor(config).stages.items()
    process = StageProcess(name, stage, 8, keep=True)
    (row,) = await process([Carried({}, {}).pack()])
    assert unpack(row).error is not None
    worker = process._pool.worker
    assert worker._limiter.limits.requests_per_minute == share
    await process._pool.stop()


async def test_a_worker_has_no_more_rows_at_a_time_however_many_batches_come():
    class Counting:
        now = most = 0

        async def process(self, row):
            Counting.now += 1
            Counting.most = max(Counting.most, Counting.now)
            await asyncio.sleep(0)
            Counting.now -= 1
            return {}

    process = StageProcess("S", StatefulStage(Counting), 4, keep=False)
    batches = [[Carried({}, {}).pack()] * 5 for _ in range(3)]
    made = await asyncio.gather(*(process(batch) for batch in batches))
    assert [len(rows) for rows in made] == [5, 5, 5]
    assert Counting.most == 4


async def test_an_error_row_has_the_columns_as_they_came_whatever_the_stage_did_to_its_row():
    class Careless:
        async def process(self, row):
            del row["id"]
            raise ValueError("no")

    begun = Beginning(None, keep=True)([{"id": 1}])
    (row,) = Ending(None, keep=True)(
        await StageProcess("S", StatefulStage(Careless), 4, keep=True)(begun)
    )
    assert (row["id"], row["status"]) == (1, "error")
