import asyncio

import msgspec
import pytest

from penstock.batch import ServeDeploymentProcessorConfig, build_processor
from penstock.batch.stages.serve_deployment import adapter_of
from penstock.engines.registry import engines
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import JobError, ModelNotFoundError
from penstock.types import RerankRequest


class ChatRequest(msgspec.Struct, omit_defaults=True):
    messages: list
    max_tokens: int | None = None


def processor(preprocess=None, **config):
    return build_processor(
        ServeDeploymentProcessorConfig(deployment_name="llm", app_name="app", **config), preprocess
    )


async def all_of(stream):
    return [row async for row in stream]


@pytest.fixture
async def engine():
    engine = SimulatedEngine(engine_kwargs={"hang_rate": 0.0})
    await engine.start()
    engines().put("llm", engine, "app")
    yield engine
    engines().remove("llm", "app")
    await engine.stop()


def chat(text, **kwargs):
    return {"messages": [{"role": "user", "content": text}], "temperature": 0.0, **kwargs}


async def test_chat_completions_and_embeddings(engine):
    rows = [
        {"row": 0, "method": "chat", "request_kwargs": chat("a", max_tokens=4)},
        {
            "row": 1,
            "method": "completions",
            "request_kwargs": {"prompt": ["a", "b"], "max_tokens": 3},
        },
        {"row": 2, "method": "embeddings", "request_kwargs": {"input": "a"}},
    ]
    first, second, third = await all_of(processor()(rows))
    assert len(first["choices"][0]["message"]["content"]) == 4
    assert first["usage"]["completion_tokens"] == 4
    assert len(second["choices"]) == 2
    assert len(third["data"][0]["embedding"]) == 16
    assert len({row["request_id"] for row in (first, second, third)}) == 3
    assert [row["row"] for row in (first, second, third)] == [0, 1, 2]
    assert await engine.check_health() is None  # its owner stops it


@pytest.mark.parametrize(
    ("name", "model_id", "adapter"),
    [
        ("qwen", "qwen", None),
        ("qwen:mine", "qwen", "mine"),
        ("qwen:0.5b", "qwen:0.5b", None),
        ("qwen:0.5b:mine", "qwen:0.5b", "mine"),
        ("base:mine", None, "mine"),
        ("base", None, None),
    ],
)
def test_the_adapter_in_the_name_of_a_model_that_may_have_colons(name, model_id, adapter):
    assert adapter_of(name, model_id) == adapter


async def test_requests_are_seen_through_their_type(engine):
    types = {"ChatCompletionRequest": ChatRequest}
    asked: list[tuple[str, dict]] = [
        (
            "ChatCompletionRequest",
            {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4},
        ),
        ("ChatCompletionRequest", {"mesages": []}),
        ("Other", {}),
    ]
    rows = [{"method": "chat", "dtype": name, "request_kwargs": kwargs} for name, kwargs in asked]
    good, wrong, unknown = await all_of(
        processor(dtype_mapping=types, should_continue_on_error=True)(rows)
    )
    assert good["choices"][0]["finish_reason"] == "length"
    assert "request_kwargs are no ChatCompletionRequest" in wrong["error"]["message"]
    assert "unknown dtype 'Other'" in unknown["error"]["message"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"method": "chatt", "request_kwargs": {}}, "unknown method 'chatt'. Did you mean 'chat'?"),
        (
            {"method": "chat", "dtype": "Chat", "request_kwargs": chat("a")},
            "'Chat'. The processor has no dtype_mapping",
        ),
        ({"method": "chat"}, "no dict in column 'request_kwargs'"),
        ({"method": "chat", "request_kwargs": {"messages": []}}, "messages"),
        (
            {"method": "chat", "request_kwargs": chat("a", max_token=3)},
            "Did you mean 'max_tokens'?",
        ),
    ],
)
async def test_an_error_is_no_success(engine, row, message):
    with pytest.raises(JobError, match="row 0 failed at stage ServeDeploymentStage"):
        await all_of(processor()([row]))
    (found,) = await all_of(processor(should_continue_on_error=True)([row]))
    assert message in found["error"]["message"]


async def test_a_request_that_takes_too_long():
    engine = SimulatedEngine(engine_kwargs={"hang_rate": 1.0})
    engines().put("llm", engine, "app")
    config = {"request_timeout_s": 0.02, "should_continue_on_error": True}
    (row,) = await all_of(processor(**config)([{"method": "chat", "request_kwargs": chat("a")}]))
    assert row["error"]["type"] == "engine_timeout"
    engines().remove("llm", "app")


async def test_cancellation_frees_the_model():
    engine = SimulatedEngine(engine_kwargs={"hang_rate": 1.0})
    await engine.start()
    engines().put("llm", engine, "app")
    task = asyncio.create_task(
        all_of(processor()([{"method": "chat", "request_kwargs": chat(text)} for text in "ab"]))
    )
    while engine.running < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.running == 0
    engines().remove("llm", "app")
    await engine.stop()


async def test_an_engine_that_dies_is_started_and_asked_again(monkeypatch):
    monkeypatch.setattr("penstock.batch.pipeline.pipeline.LONGEST_PAUSE", 0.0)
    engine = SimulatedEngine(engine_kwargs={"die_after": 5})
    await engine.start()
    engines().put("llm", engine, "app")
    rows = [{"method": "chat", "request_kwargs": chat(str(n), max_tokens=4)} for n in range(20)]
    assert len(await all_of(processor()(rows))) == 20
    await engine.check_health()  # its owner stops it
    engines().remove("llm", "app")
    await engine.stop()


async def test_rows_come_one_to_one_and_in_order(engine):
    rows = [
        {"row": n, "method": "chat", "request_kwargs": chat(f"{n}", max_tokens=1 + n % 7)}
        for n in range(200)
    ]
    found = await all_of(processor(concurrency=2)(rows))
    assert [row["row"] for row in found] == list(range(200))
    assert [row["usage"]["completion_tokens"] for row in found] == [1 + n % 7 for n in range(200)]


async def test_a_name_that_nothing_has():
    with pytest.raises(ModelNotFoundError, match="there is no engine 'llm' in app 'app'"):
        await all_of(processor()([{}]))


class Own:
    """A user's deployment."""

    def __init__(self):
        self.calls = []

    def __call__(self, request):
        return {"called": request["x"]}

    def double(self, request):
        self.calls.append(request)
        return {"doubled": 2 * request["x"]}

    async def later(self, request):
        return {"x": request["x"] + 1}

    async def stream(self, request):
        yield {"part": request["x"]}
        raise AssertionError("nobody reads on")

    async def several(self, requests):
        self.calls.append(len(requests))
        return [{"x": request["x"] + 1} for request in requests]

    def typed(self, request):
        return Answer(request.x + 1)

    def text(self, request):
        return "no fields"


class AnyMethod:
    """Has a method of any name, as a handle to another process has."""

    def __getattr__(self, name):
        return lambda request: {"called": name}


async def test_a_handle_may_have_methods_of_any_name():
    engines().put("llm", AnyMethod(), "app")
    rows: list[dict] = [
        {"method": name, "request_kwargs": {}} for name in ("one", "chat", "deployment")
    ]
    assert [row["called"] for row in await all_of(processor()(rows))] == [
        "one",
        "chat",
        "deployment",
    ]
    engines().remove("llm", "app")


class Question(msgspec.Struct):
    x: int


class Answer(msgspec.Struct):
    y: int


@pytest.fixture
async def own():
    deployment = Own()
    engines().put("llm", deployment, "app")
    yield deployment
    engines().remove("llm", "app")


@pytest.mark.parametrize(
    ("method", "column", "value"),
    [("double", "doubled", 6), ("later", "x", 4), ("stream", "part", 3), ("__call__", "called", 3)],
)
async def test_a_users_deployment_has_its_own_methods(own, method, column, value):
    (row,) = await all_of(processor()([{"method": method, "request_kwargs": {"x": 3}}]))
    assert row[column] == value
    assert row.keys() >= {"request_id", "time_taken"}


async def test_requests_and_answers_may_be_objects(own):
    row = {"method": "typed", "dtype": "Question", "request_kwargs": {"x": 3}}
    (found,) = await all_of(processor(dtype_mapping={"Question": Question})([row]))
    assert found["y"] == 4


async def test_rows_are_grouped_where_a_method_takes_lists(own):
    rows = [{"row": n, "method": "several", "request_kwargs": {"x": n}} for n in range(100)]
    found = await all_of(processor(rows_per_call=8)(rows))
    assert [row["x"] for row in found] == list(range(1, 101))
    assert max(own.calls) == 8
    assert sum(own.calls) == 100
    assert len(own.calls) < 30


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("doubel", "Did you mean 'double'?"),
        ("__init__", "unknown method"),
        ("text", "gave a str, no dict and no object"),
        ("double", "KeyError"),
    ],
)
async def test_what_a_users_deployment_cannot_do(own, method, message):
    row = {"method": method, "request_kwargs": {}}
    (found,) = await all_of(processor(should_continue_on_error=True)([row]))
    assert message in found["error"]["message"]


async def test_a_wrong_number_of_answers_fails_all_rows_of_a_call(own):
    own.several = lambda requests: requests[1:]
    rows = [{"method": "several", "request_kwargs": {"x": n}} for n in range(4)]
    found = await all_of(processor(rows_per_call=4, should_continue_on_error=True)(rows))
    assert {row["error"]["message"] for row in found} == {"3 answers to 4 requests"}


async def test_a_call_for_which_nobody_waits_ends_with_the_processor(own):
    ended = []

    async def several(requests):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(len(requests))

    own.several = several
    rows = [{"method": "several", "request_kwargs": {"x": n}} for n in range(2)]
    config = {"rows_per_call": 2, "request_timeout_s": 0.02, "should_continue_on_error": True}
    found = await all_of(processor(**config)(rows))
    assert {row["error"]["type"] for row in found} == {"engine_timeout"}
    assert ended == [2]


async def test_methods_of_an_engine_beside_the_three(engine):
    types = {"Rank": RerankRequest}
    kwargs = {"query": "a", "documents": ["a", "b"]}
    row = {"method": "score", "dtype": "Rank", "request_kwargs": kwargs}
    (found,) = await all_of(processor(dtype_mapping=types)([row]))
    assert len(found["scores"]) == 2
