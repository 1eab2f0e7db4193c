"""OpenAI's own client with stored responses and conversations, on the demo model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai")

BILL, MORE = "I was charged twice for LN 3814.", "Where is my order?"


@pytest.fixture(scope="module")
def url(serving: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("store")
    keys = folder / "keys"
    keys.write_text("mine\nyours\n")
    store: Path = folder / "new" / "responses.db"
    with serving("demo", "--store", str(store), "--api-key-file", str(keys)) as server:
        yield server.url
        assert store.parent.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in store.parent.iterdir()} == {0o600}


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="mine", max_retries=0) as made:
        yield made


def create(client: Any, input: Any, **more: Any) -> Any:
    return client.responses.create(model="demo", input=input, max_output_tokens=60, **more)


def test_responses_continue_one_another(client: Any, url: str) -> None:
    first = create(client, BILL)
    second = create(client, MORE, previous_response_id=first.id)
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    assert client.responses.retrieve(second.id) == second
    with client.responses.stream(
        model="demo", input=BILL, previous_response_id=second.id, max_output_tokens=60
    ) as stream:
        third = stream.until_done().get_final_response()
    assert client.responses.retrieve(third.id).output_text == third.output_text
    # Three pages.
    items = list(client.responses.input_items.list(third.id, order="asc", limit=2))
    assert [item.content[0].text for item in items] == [
        BILL,
        first.output_text,
        MORE,
        second.output_text,
        BILL,
    ]
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="yours", max_retries=0) as other,
        pytest.raises(openai.NotFoundError),
    ):
        other.responses.retrieve(first.id)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="no response"):
        client.responses.retrieve(first.id)


def test_a_response_in_the_background(client: Any) -> None:
    response = create(client, BILL, background=True)
    assert response.status in ("queued", "in_progress")
    while response.status in ("queued", "in_progress"):
        response = client.responses.retrieve(response.id)
    assert response.status == "completed"
    assert response.output_text == create(client, BILL).output_text
    every = list(client.responses.retrieve(response.id, stream=True))
    assert every[-1].response.output_text == response.output_text
    assert list(client.responses.retrieve(response.id, stream=True, starting_after=3)) == [
        event for event in every if event.sequence_number > 3
    ]
    assert client.responses.cancel(response.id).status == "completed"
    followed = list(create(client, BILL, background=True, stream=True))
    assert followed[-1].response.output_text == response.output_text


def test_conversations(client: Any) -> None:
    talk = client.conversations.create(
        metadata={"of": "a test"}, items=[{"role": "user", "content": BILL}]
    )
    answer = create(client, MORE, conversation=talk.id)
    assert answer.conversation.id == talk.id
    items = list(client.conversations.items.list(talk.id, limit=2))
    assert [item.content[0].text for item in items] == [answer.output_text, MORE, BILL]
    (added,) = client.conversations.items.create(
        talk.id, items=[{"role": "user", "content": "more"}]
    ).data
    assert client.conversations.items.retrieve(added.id, conversation_id=talk.id) == added
    assert client.conversations.items.delete(added.id, conversation_id=talk.id).id == talk.id
    assert client.conversations.update(talk.id, metadata={"a": "b"}).metadata == {"a": "b"}
    assert client.conversations.retrieve(talk.id).metadata == {"a": "b"}
    assert client.conversations.delete(talk.id).deleted
    with pytest.raises(openai.NotFoundError):
        create(client, MORE, conversation=talk.id)
