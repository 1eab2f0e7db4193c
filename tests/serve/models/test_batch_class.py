"""The class of a request: where it comes from, and that it reaches the engine."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from penstock.engines.quarantine import digest_of
from penstock.llm_config import LLMConfig
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.models.handle import ModelHandle
from penstock.serve.models.local import LocalModel
from penstock.types import ChatRequest, CompletionRequest, EmbeddingRequest, Sampling

CONFIG = LLMConfig(model_loading_config={"model_id": "m"}, llm_engine="simulated")  # type: ignore[arg-type]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The class of each request that an engine was asked."""
    from penstock.engines.simulated.engine import SimulatedEngine

    classes: list[bool] = []
    generate, answer = SimulatedEngine.generate, SimulatedEngine.answer

    def generated(self: Any, request: Any) -> Any:
        classes.append(request.batch)
        return generate(self, request)

    async def answered(self: Any, task: str, request: Any) -> Any:
        classes.append(getattr(request, "batch", False))
        return await answer(self, task, request)

    monkeypatch.setattr(SimulatedEngine, "generate", generated)
    monkeypatch.setattr(SimulatedEngine, "answer", answered)
    return classes


async def test_requests_of_the_view_are_of_the_batch_class(asked: list[bool]) -> None:
    model = LocalModel(CONFIG)
    batch: ModelHandle = model.for_batch()
    assert (batch.model_id, batch.card().id, batch.for_batch()) == ("m", "m", batch)
    assert batch.state().state == "cold"
    for handle in (batch, model):
        async for _ in handle.completions(CompletionRequest("hi")):
            pass
        await handle.embeddings(EmbeddingRequest(["hi"]))
        await handle.tokenize("hi")
    assert asked == [True, True, False, False, False, False]
    await model.stop()


@pytest.mark.parametrize(
    ("given", "status", "batch"),
    [(None, 200, [False]), ("online", 200, [False]), ("batch", 200, [True]), ("bulk", 400, [])],
)
def test_a_header_names_the_class(
    given: str | None, status: int, batch: list[bool], asked: list[bool]
) -> None:
    headers = {} if given is None else {"x-penstock-class": given}
    with TestClient(OpenAiIngress({"m": LocalModel(CONFIG)})) as client:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        reply = client.post("/v1/chat/completions", json=body, headers=headers)
    assert reply.status_code == status, reply.text
    assert asked == batch
    if status == 400:
        error = reply.json()["error"]
        assert error["param"] == "x-penstock-class"
        assert "'online' or 'batch', not 'bulk'" in error["message"]


def test_the_class_is_no_part_of_what_is_asked() -> None:
    one = ChatRequest([{"role": "user", "content": "hi"}], Sampling(temperature=0.0))
    other = ChatRequest(one.messages, one.sampling, batch=True)
    assert digest_of(one) == digest_of(other)
