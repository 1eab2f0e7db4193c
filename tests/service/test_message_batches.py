"""Anthropic's client and its batches of messages."""

import asyncio
import json

import anthropic
import pytest

from batch_service import batch_service


@pytest.fixture
async def service(tmp_path):
    async with batch_service(tmp_path, max_lines=300) as made:
        yield made


def asked(name, **params):
    messages = [{"role": "user", "content": name}]
    given = {"model": "sim", "max_tokens": 4, "temperature": 0, "messages": messages}
    return {"custom_id": name, "params": {**given, **params}}


async def ended(client, id):
    async with asyncio.timeout(60):
        while (batch := await client.messages.batches.retrieve(id)).processing_status != "ended":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return batch


async def results(client, id):
    return {one.custom_id: one.result async for one in await client.messages.batches.results(id)}


async def test_a_batch_of_messages(service):
    client = service.anthropic()
    requests = [asked("a"), asked("b", max_tokens=-1), asked("c", model="nothing"), asked("d")]
    requests.append(asked("e", stream=True))
    batch = await client.messages.batches.create(requests=requests)
    assert (batch.processing_status, batch.results_url) == ("in_progress", None)
    assert batch.request_counts.processing == 5
    batch = await ended(client, batch.id)
    counts = batch.request_counts
    assert (counts.processing, counts.succeeded, counts.errored) == (0, 2, 3)
    found = await results(client, batch.id)
    assert found["a"].type == "succeeded"
    assert found["a"].message.usage.output_tokens == 4
    assert found["b"].error.error.type == "invalid_request_error"
    assert found["c"].error.error.type == "not_found_error"
    assert "stream" in found["e"].error.error.message
    async with service.http() as http:
        online = (await http.post("/v1/messages", json=requests[0]["params"])).json()
    assert found["a"].message.content[0].text == online["content"][0]["text"]
    assert (await client.messages.batches.delete(batch.id)).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.batches.retrieve(batch.id)
    assert not list((service.service.folder / "files").iterdir())


async def test_any_model_of_a_batch_lets_a_server_take_it_over(service):
    client = service.anthropic()
    unknown = asked("a", model="nothing")
    for requests, needed in (([unknown, asked("b")], "sim"), ([unknown], "")):
        batch = await client.messages.batches.create(requests=requests)
        stored = await service.service._stores.batches.get(None, batch.id)
        assert stored.model == needed  # else a restarted server would leave it alone
        await ended(client, batch.id)


async def test_a_cancelled_batch_of_messages(tmp_path):
    slow = {"time_per_token_ms": 20.0, "max_num_seqs": 1}
    async with batch_service(tmp_path, engine=slow) as service:
        client = service.anthropic()
        batch = await client.messages.batches.create(
            requests=[asked(f"r{number}", max_tokens=50) for number in range(20)]
        )
        with pytest.raises(anthropic.ConflictError):
            await client.messages.batches.delete(batch.id)
        assert (await client.messages.batches.cancel(batch.id)).processing_status == "canceling"
        batch = await ended(client, batch.id)
        assert batch.cancel_initiated_at is not None
        found = await results(client, batch.id)
        assert (
            sum(one.type == "canceled" for one in found.values()) == batch.request_counts.canceled
        )
        assert len(found) == 20
        assert batch.request_counts.canceled > 15


async def test_pages_of_batches_of_messages(service):
    client = service.anthropic()
    ids = [(await client.messages.batches.create(requests=[asked("a")])).id for _ in range(3)]
    assert [one.id async for one in client.messages.batches.list(limit=2)] == ids[::-1]
    before = await client.messages.batches.list(limit=1, before_id=ids[0])
    assert ([one.id for one in before.data], before.has_more) == ([ids[1]], True)
    assert [one.id for one in (await service.openai().batches.list()).data] == []


@pytest.mark.parametrize(
    ("requests", "where"),
    [
        ([], "requests"),
        ([asked("a"), asked("a")], "requests.1.custom_id"),
        ([asked("../a")], "requests.0.custom_id"),
        ([{"custom_id": "a", "params": [1]}], "requests.0.params"),
        ([asked(f"r{number}") for number in range(301)], "requests"),
        ([{"custom_id": "a"}], "params"),
        ([{**asked("a"), "unheard_of": 1}], "unheard_of"),
    ],
)
async def test_wrong_batches_of_messages(service, requests, where):
    with pytest.raises(anthropic.BadRequestError) as refused:
        await service.anthropic().messages.batches.create(requests=requests)
    assert where in str(refused.value)


async def test_a_key_that_stands_twice_in_a_message(service):
    body = json.dumps({"requests": [asked("a"), asked("b")]})
    body = body.replace('"content": "b"', '"content": "b", "content": "c"')
    headers = {"content-type": "application/json"}
    async with service.http() as client:
        answer = await client.post("/v1/messages/batches", content=body, headers=headers)
    assert answer.status_code == 400
    assert "requests.1.params: the key 'content' stands twice" in answer.text


async def test_bytes_that_are_no_text_in_a_message(service):
    body = json.dumps({"requests": [asked("a")]}).encode()
    body = body.replace(b'"content": "a"', b'"content": "\xff"')
    headers = {"content-type": "application/json"}
    async with service.http() as client:
        answer = await client.post("/v1/messages/batches", content=body, headers=headers)
    assert answer.status_code == 400
    assert "UTF-8" in answer.text
