"""Batches that are paused and resumed."""

import asyncio

from batch_service import batch_service, line

SLOW = {"time_per_token_ms": 20.0}


async def test_a_paused_batch_begins_no_more_lines_until_it_is_resumed(tmp_path):
    async with batch_service(tmp_path, engine=SLOW, max_in_flight=2) as service:
        batch = await service.submit(line(str(number)) for number in range(40))
        await service.under_way(batch.id)
        async with service.http() as client:
            paused = (await client.post(f"/v1/batches/{batch.id}/pause")).json()
            assert (paused["paused"], paused["status"]) == (True, "in_progress")
            handle = service.handles["sim"]
            async with asyncio.timeout(30):
                while handle.state().running:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # several lines' time
            assert handle.state().running == 0
            run = service.service._stores.runner._runs[batch.id]
            assert run.counts.rows < 40
            resumed = (await client.post(f"/v1/batches/{batch.id}/resume")).json()
            assert resumed["paused"] is False
            assert (await service.ended(batch.id)).request_counts.completed == 40
            late = await client.post(f"/v1/batches/{batch.id}/pause")
            assert (late.status_code, "completed" in late.text) == (409, True)
            assert (await client.post("/v1/batches/batch_none/pause")).status_code == 404


async def test_a_paused_batch_stays_so_over_a_restart_and_can_be_cancelled(tmp_path):
    async with batch_service(tmp_path, engine=SLOW, max_in_flight=2) as service:
        batch = await service.submit(line(str(number)) for number in range(40))
        await service.under_way(batch.id)
        async with service.http() as client:
            await client.post(f"/v1/batches/{batch.id}/pause")
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 4  # it does not wait for paused lines
    async with batch_service(tmp_path, engine=SLOW) as service:
        known = await service.openai().batches.retrieve(batch.id)
        assert (known.status, known.model_extra["paused"]) == ("in_progress", True)
        await service.openai().batches.cancel(batch.id)
        ended = await service.ended(batch.id)
        assert ended.status == "cancelled"
        assert 0 < ended.request_counts.completed < 40
