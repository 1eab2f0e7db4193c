"""Malformed requests get a 4xx in OpenAI's shape, each of them."""

from __future__ import annotations

import codecs
import json
from typing import Any

import pytest

from penstock.serve.api.routes import ENDPOINTS

CHAT = {"model": "sim", "messages": [{"role": "user", "content": "hello"}]}


def chat(**change: Any) -> bytes:
    return json.dumps({**CHAT, **change}).encode()


DEEP = b'{"model": "sim", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
LEVELS = 400
NESTED = b'{"type": "object", "properties": {"a": ' * LEVELS + b"{}" + b"}}" * LEVELS

BODIES: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 400),
    "truncated": (chat()[:-5], 400),
    "bad UTF-8": (b'{"model": "sim\xff"}', 400),
    "lone surrogate": (
        b'{"model": "sim", "messages": [{"role": "user", "content": "\\ud800"}]}',
        400,
    ),
    "not an object": (b"[1, 2]", 400),
    "no JSON": (b"hello", 400),
    "deep": (DEEP, 400),
    "many digits": (chat().replace(b"}]}", b'}], "seed": ' + b"9" * 10_000 + b"}"), 400),
    "huge seed": (chat(seed=10**40), 400),
    "huge float": (chat(temperature=10**400), 400),
    "huge max_tokens": (chat(max_tokens=10**19), 400),
    "negative max_tokens": (chat(max_tokens=-1), 400),
    "zero max_tokens": (chat(max_tokens=0), 400),
    "zero max_completion_tokens": (chat(max_completion_tokens=0, max_tokens=5), 400),
    "n zero": (chat(n=0), 400),
    "n beyond the limit": (chat(n=100_000), 400),
    "messages a text": (chat(messages="hello"), 400),
    "messages empty": (chat(messages=[]), 400),
    "message a number": (chat(messages=[1]), 400),
    "role a list": (chat(messages=[{"role": [], "content": "x"}]), 400),
    "content a number": (chat(messages=[{"role": "user", "content": 1}]), 400),
    "part without a type": (chat(messages=[{"role": "user", "content": [{}]}]), 400),
    "tool_calls a number": (chat(messages=[{"role": "assistant", "tool_calls": 5}]), 400),
    "tools an object": (chat(tools={}), 400),
    "tool_choice a number": (chat(tool_choice=3), 400),
    "temperature a text": (chat(temperature="hot"), 400),
    "temperature out of range": (chat(temperature=9), 400),
    "unknown parameter": (chat(temprature=1), 400),
    "schema not a schema": (
        chat(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "objet"}}}),
        400,
    ),
    "schema nested": (
        chat(response_format={"type": "json_schema", "json_schema": {"schema": "?"}}).replace(
            b'"?"', NESTED
        ),
        400,
    ),
    "response_format unknown": (chat(response_format={"type": []}), 400),
    "stream_options without stream": (chat(stream_options={"include_usage": True}), 400),
    "template from the request": (chat(chat_template="{{ x }}"), 400),
    "logit_bias": (chat(logit_bias={"1": 1}), 400),
    "no model": (chat(model="nobody"), 404),
    "model a number": (chat(model=7), 400),
    "unknown adapter": (chat(model="sim:germna"), 404),
    "adapter climbing": (chat(model="sim:../../etc/passwd"), 404),
    "adapter absolute": (chat(model="sim:/etc/passwd"), 404),
    "adapter hidden": (chat(model="sim:.ssh"), 404),
    "adapter with a zero byte": (chat(model="sim:a\x00b"), 404),
    "adapter empty": (chat(model="sim:"), 404),
    "prompt too long": (chat(messages=[{"role": "user", "content": "word " * 2_000_000}]), 400),
}


def check_shape(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["type"] in ("invalid_request_error", "server_error")
    assert answer.headers["x-request-id"]
    return error


async def test_a_body_may_begin_with_a_byte_order_mark(client: Any) -> None:
    headers = {"content-type": "application/json"}
    body = codecs.BOM_UTF8 + chat()
    answer = await client.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_malformed_chats(client: Any, body: bytes, status: int, stream: bool) -> None:
    if stream:
        body = body.replace(b'{"model"', b'{"stream": true, "model"', 1)
    if stream and b"stream_options" in body:
        status = 200
    answer = await client.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    if status != 200:
        check_shape(answer, status)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            {
                **dict.fromkeys(
                    (
                        "functions",
                        "function_call",
                        "continue_final_message",
                        "add_generation_prompt",
                    )
                ),
                **dict.fromkeys(
                    ("skip_special_tokens", "chat_template_kwargs", "audio", "metadata")
                ),
                "top_logprobs": 0,
                "messages": [{"role": "user", "content": "hi", "name": None, "tool_calls": None}],
            },
        ),
        (
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": "hi"}],
                "stream": True,
                "stream_options": {"include_usage": None, "include_obfuscation": None},
            },
        ),
        ("/v1/completions", {"prompt": "hi", "add_special_tokens": None, "use_beam_search": None}),
        (
            "/v1/embeddings",
            {"input": "hi", "encoding_format": None, "truncate_prompt_tokens": None},
        ),
    ],
)
async def test_null_is_absence(client: Any, path: str, body: Any) -> None:
    answer = await client.post(path, json={"model": "sim", **body})
    assert answer.status_code == 200, answer.text


async def test_null_is_no_value_of_what_must_be_given(client: Any) -> None:
    answer = await client.post("/v1/chat/completions", json={"model": "sim", "messages": None})
    assert check_shape(answer, 400)["param"] == "messages"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", {"prompt": []}, 400),
        ("/v1/completions", {"prompt": [1, "a"]}, 400),
        ("/v1/completions", {"prompt": [10**12]}, 400),
        ("/v1/completions", {"prompt": [-1]}, 400),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, 400),
        ("/v1/completions", {"prompt": ["a"] * 200}, 400),
        ("/v1/completions", {}, 400),
        ("/v1/embeddings", {"input": []}, 400),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, 400),
        ("/v1/embeddings", {"input": "a", "dimensions": 10**30}, 400),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, 400),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, 400),
        ("/v1/score", {"text_1": [], "text_2": ["c"]}, 400),
        ("/v1/rerank", {"query": "a", "documents": []}, 400),
        ("/v1/rerank", {"query": "a", "documents": [{"txt": "b"}]}, 400),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, 400),
        ("/v1/score", {"text_1": "a", "documents": "b"}, 400),
        ("/classify", {"input": []}, 400),
        ("/classify", {"input": [""]}, 400),
        ("/classify", {"input": "a"}, 400),
        ("/tokenize", {"prompt": 5}, 400),
        ("/detokenize", {"tokens": [-5]}, 400),
        ("/detokenize", {"tokens": [2**31]}, 400),
        ("/v1/responses", {}, 400),
        ("/v1/responses", {"input": []}, 400),
        ("/v1/responses", {"input": [{"type": "image"}]}, 400),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, 400),
        ("/v1/responses", {"input": "a", "previous_response_id": "resp_1"}, 400),
        ("/v1/responses", {"input": "a", "tools": [{"type": "web_search"}]}, 400),
        ("/v1/responses", {"input": "a", "text": {"format": {"type": "yaml"}}}, 400),
    ],
)
async def test_malformed_others(client: Any, path: str, body: dict[str, Any], status: int) -> None:
    check_shape(await client.post(path, json={"model": "sim", **body}), status)


RAW: dict[str, bytes] = {
    "empty": b"",
    "truncated": b'{"model": "sim", "max_tokens": 5, "messages": [{"role": "us',
    "bad UTF-8": b'{"model": "sim\xff"}',
    "deep": DEEP,
    "deep object": b'{"model": ' * 5000 + b"1" + b"}" * 5000,
    "many digits": b'{"model": "sim", "max_tokens": ' + b"9" * 10_000 + b"}",
    "NaN": b'{"model": "sim", "temperature": NaN}',
    "twice": b'{"model": "sim"}{"model": "sim"}',
    "null": b"null",
    "a byte order mark": b'\xef\xbb\xbf{"model": "sim"}',
    "UTF-16": '{"model": "sim"}'.encode("utf-16"),
}


@pytest.mark.parametrize("body", RAW.values(), ids=RAW)
@pytest.mark.parametrize(
    "path", [endpoint.path for endpoint in ENDPOINTS if endpoint.body is not None]
)
async def test_no_endpoint_takes_what_is_no_request(client: Any, path: str, body: bytes) -> None:
    answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    if path.startswith("/v1/messages"):
        assert answer.status_code == 400
        assert (answer.json()["type"], answer.json()["error"]["type"]) == (
            "error",
            "invalid_request_error",
        )
    else:
        check_shape(answer, 400)


@pytest.mark.parametrize(
    "name",
    [
        "sim:../../etc",
        "sim:/etc/passwd",
        "sim:..%2f..",
        "sim:a\x00b",
        "../sim",
        "sim:.",
        "x" * 10**6,
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/tokenize"])
async def test_path_tricks_in_names_are_unknown_models_everywhere(
    client: Any, path: str, name: str
) -> None:
    answer = await client.post(
        path,
        json={"model": name, "prompt": "x"}
        if "embed" not in path
        else {"model": name, "input": "x"},
    )
    error = check_shape(answer, 404)
    assert error["code"] == "model_not_found"
    assert len(error["message"]) < 1000


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
async def test_a_wrong_content_type_is_a_415(client: Any, kind: str) -> None:
    answer = await client.post(
        "/v1/chat/completions", content=chat(), headers={"content-type": kind}
    )
    check_shape(answer, 415)


async def test_a_compressed_body_is_a_415(client: Any) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = await client.post("/v1/chat/completions", content=b"\x1f\x8b", headers=headers)
    assert "content-encoding 'gzip'" in check_shape(answer, 415)["message"]


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/chat", "/v1/chat/completions/", "/sleep", "/%00"]
)
async def test_an_unknown_path_is_a_404(client: Any, path: str) -> None:
    check_shape(await client.post(path, json={}), 404)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/chat/completions", "Did you mean '/v1/chat/completions'?"),
        ("/v1/v1/chat/completions", "Did you mean '/v1/chat/completions'?"),
        ("/v1/chat/completions/", "Did you mean '/v1/chat/completions'?"),
        ("/v1/images/generations", "'/v1/images/generations'. /docs lists those that exist"),
        ("/sleep", "only a server with control routes (http.dev) has it"),
        ("/a%0Ab", r"there is no path '/a\nb'"),
        ("/v1/models%0A", r"there is no path '/v1/models\n'"),
    ],
)
async def test_an_unknown_path_is_named_with_the_way_out(client: Any, path: str, told: str) -> None:
    assert told in check_shape(await client.post(path, json={}), 404)["message"]


async def test_a_wrong_method_is_a_405(client: Any) -> None:
    error = check_shape(await client.get("/v1/chat/completions"), 405)
    assert error["message"].startswith("'/v1/chat/completions' takes POST, not GET;")
    check_shape(await client.delete("/v1/models"), 405)


async def test_the_body_limit_holds_with_and_without_a_declared_length(
    ingress: Any, served: Any
) -> None:
    from penstock.serve.config.settings import Limits

    small = served(*ingress.handles.values(), limits=Limits(max_body_bytes=1000))

    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * 100

    async with small.client() as client:
        headers = {"content-type": "application/json"}
        check_shape(
            await client.post("/v1/chat/completions", content=b" " * 2000, headers=headers), 413
        )
        check_shape(
            await client.post("/v1/chat/completions", content=chunks(), headers=headers), 413
        )
        assert (
            await client.post("/v1/chat/completions", content=chat(), headers=headers)
        ).status_code == 200


async def test_a_body_has_no_more_objects_than_can_be_looked_at(client: Any) -> None:
    cited = 'as he said.[1] {"a": [0, {}]}\\' * 60_000
    kept = [{"type": "text", "text": cited}] + [{"type": "text", "text": ""}] * 49_990
    many = [{"role": "user", "content": kept}]
    answer = await client.post("/tokenize", json={"model": "sim", "messages": many})
    assert answer.status_code == 200
    parts = [*kept, *[{"type": "text", "text": ""}] * 20]
    for path in ("/v1/chat/completions", "/invocations"):
        body: Any = {"model": "sim", "messages": [{"role": "user", "content": parts}]}
        error = check_shape(await client.post(path, json=body), 400)
        assert error["message"] == "the request body has more than 50,000 objects and lists"
    body = {"model": "sim", "prompt": [1] * 1_000_002}
    error = check_shape(await client.post("/v1/completions", json=body), 400)
    assert error["message"] == "the request body has more than 1,000,000 values"
    for text in ('{"a":[]}' * 60_000, "[1,\\" * 900_000):
        body = {"model": "sim", "messages": [{"role": "user", "content": text}]}
        error = check_shape(await client.post("/v1/chat/completions", json=body), 400)
        assert error["code"] == "context_length_exceeded"


async def test_limits_on_tokens_and_choices(ingress: Any, served: Any) -> None:
    from penstock.serve.config.settings import Limits

    tight = served(*ingress.handles.values(), limits=Limits(max_tokens=5, max_choices=2))
    async with tight.client() as client:
        error = check_shape(
            await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 6}), 400
        )
        assert error["param"] == "max_tokens"
        error = check_shape(await client.post("/v1/chat/completions", json={**CHAT, "n": 3}), 400)
        assert error["param"] == "n"
        body = {"prompt": ["a", "b", "c"], "max_tokens": 1}
        error = check_shape(await client.post("/v1/completions", json=body), 400)
        assert (error["param"], error["message"]) == (
            "prompt",
            "at most 2 answers may be asked for at once, not 3",
        )
        answer = (await client.post("/v1/chat/completions", json=CHAT)).json()
        assert answer["usage"]["completion_tokens"] == 5


async def test_unknown_names_are_told_the_nearest(client: Any) -> None:
    error = check_shape(
        await client.post("/v1/chat/completions", json={**CHAT, "model": "sin"}), 404
    )
    assert "Did you mean 'sim'?" in error["message"]
    error = check_shape(
        await client.post("/v1/chat/completions", json={**CHAT, "model": "sim:germna"}), 404
    )
    assert "Did you mean 'german'?" in error["message"]
    error = check_shape(
        await client.post("/v1/chat/completions", json={**CHAT, "tempature": 1}), 400
    )
    assert "Did you mean 'temperature'?" in error["message"]


async def test_what_the_engine_cannot_do_is_a_refusal(client: Any) -> None:
    files = {"file": ("a.wav", b"RIFF")}
    error = check_shape(
        await client.post("/v1/audio/transcriptions", files=files, data={"model": "sim"}), 400
    )
    assert "simulated" in error["message"]


@pytest.mark.parametrize(
    ("files", "data"),
    [
        ({}, {"model": "sim"}),
        ({"file": ("a", b"x")}, {"model": "sim", "max_tokens": "-1"}),
        ({"file": ("a", b"x")}, {"model": "sim", "max_tokens": "9" * 5000}),
        ({"file": ("a", b"x")}, {"model": "sim", "langage": "de"}),
    ],
)
async def test_malformed_forms(client: Any, files: Any, data: Any) -> None:
    answer = await client.post(
        "/v1/audio/transcriptions", files=files or {"model": (None, "sim")}, data=data
    )
    check_shape(answer, 400)


async def test_a_form_that_is_none(client: Any) -> None:
    for content in (b"", b"--x\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\n\xff\r\n--x--"):
        headers = {"content-type": "multipart/form-data; boundary=x"}
        check_shape(
            await client.post("/v1/audio/transcriptions", content=content, headers=headers), 400
        )
    form = {"content-type": "multipart/form-data"}
    for headers, status in ((form, 400), ({**form, "content-encoding": "gzip"}, 415)):
        answer = await client.post("/v1/audio/transcriptions", content=b"x", headers=headers)
        check_shape(answer, status)


async def test_overload_says_when_to_come_back(served: Any, untouchable: Any) -> None:
    from penstock.errors import OverloadedError
    from penstock.serve.models.handle import ModelState

    full = untouchable("m", ModelState("ready"))

    async def chat(request: Any) -> Any:
        raise OverloadedError("the queue is full", 2.5)
        yield

    full.chat = chat
    async with served(full).client() as client:
        for stream in (False, True):
            answer = await client.post(
                "/v1/chat/completions", json={**CHAT, "model": "m", "stream": stream}
            )
            check_shape(answer, 503)
            assert answer.headers["retry-after"] == "3"


async def test_an_unforeseen_error_tells_nothing_of_the_inside(
    served: Any, untouchable: Any, caplog: Any
) -> None:
    from penstock.serve.models.handle import ModelState

    broken = untouchable("m", ModelState("ready"))
    broken.chat = broken._refuse
    async with served(broken).client() as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, "model": "m"})
    error = check_shape(answer, 500)
    assert "a model was called" not in error["message"]
    assert "a model was called" in caplog.text


async def test_anthropics_route_answers_in_its_own_shape(client: Any) -> None:
    ask = {"model": "sim", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    changes: list[tuple[dict[str, Any], int, str]] = [
        ({"model": "nobody"}, 404, "not_found_error"),
        ({"max_tokens": -1}, 400, "invalid_request_error"),
        ({"messages": []}, 400, "invalid_request_error"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
            400,
            "invalid_request_error",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            400,
            "invalid_request_error",
        ),
        ({"tool_choice": {"type": []}}, 400, "invalid_request_error"),
        ({"system": [{"type": "image"}]}, 400, "invalid_request_error"),
        ({"tools": [{"name": 5}]}, 400, "invalid_request_error"),
        ({"tools": [{"name": "a", "input_schema": 5}]}, 400, "invalid_request_error"),
        ({"thinking": {"type": "deep"}}, 400, "invalid_request_error"),
    ]
    for change, status, kind in changes:
        answer = await client.post("/v1/messages", json={**ask, **change})
        assert answer.status_code == status, answer.text
        body = answer.json()
        assert body["type"] == "error"
        assert body["error"]["type"] == kind
        assert body["error"]["message"]


CLAUDE = {"anthropic-version": "2023-06-01", "x-request-id": "r-1"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "kind"),
    [
        ("GET", "/v1/messages/batches", {"x-request-id": "r-1"}, 404, "not_found_error"),
        ("GET", "/v1/messages", {"x-request-id": "r-1"}, 405, "invalid_request_error"),
        ("GET", "/v1/nowhere", CLAUDE, 404, "not_found_error"),
        ("GET", "/v1/models/nobody", CLAUDE, 404, "not_found_error"),
    ],
)
async def test_anthropics_clients_get_their_own_shape_everywhere(
    client: Any, method: str, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    answer = await client.request(method, path, headers=headers)
    body = answer.json()
    assert (answer.status_code, body["error"]["type"]) == (status, kind)
    assert body["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    assert body["request_id"] == "r-1"


@pytest.mark.parametrize("kind", ["create", "continue"])
async def test_a_thread_is_refused_so_that_the_sdk_sends_all_messages(
    client: Any, kind: str
) -> None:
    body = {**CHAT, "max_tokens": 5, "thread": {"type": kind}}
    answer = await client.post("/v1/messages", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["details"] == {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }


async def test_anthropics_limits_have_its_shape(ingress: Any, served: Any) -> None:
    from penstock.serve.config.settings import Limits

    (model,) = ingress.handles.values()
    site = served(model, api_keys=frozenset({"k"}), limits=Limits(max_body_bytes=10))
    async with site.client() as client:
        for headers, status, kind in (
            ({}, 401, "authentication_error"),
            ({"x-api-key": "k"}, 413, "request_too_large"),
        ):
            answer = await client.post("/v1/messages", json=CHAT, headers=headers)
            assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
            assert answer.json()["type"] == "error"


async def test_a_405_lists_the_methods_of_its_path(client: Any) -> None:
    for path, allow in (("/v1/chat/completions", "POST"), ("/v1/models", "GET, HEAD")):
        answer = await client.request("DELETE", path)
        check_shape(answer, 405)
        assert answer.headers["allow"] == allow


async def test_what_stays_refused_is_not_to_be_tried_again(client: Any) -> None:
    answer = await client.post("/classify", json={"model": "sim", "input": "a"})
    error = check_shape(answer, 400)
    assert (error["type"], error["code"]) == ("invalid_request_error", "unsupported")
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": CHAT["messages"]}, "messages"),
        ("/v1/completions", {"prompt": "hello"}, "prompt"),
        ("/v1/responses", {"input": "hello"}, "input"),
        ("/v1/messages", {"messages": CHAT["messages"], "max_tokens": 9}, "messages"),
    ],
)
async def test_a_long_prompt_is_refused_in_known_words(
    client: Any, path: str, body: dict[str, Any], param: str
) -> None:
    long = "word " * 40_000
    body = json.loads(json.dumps(body).replace('"hello"', json.dumps(long)))
    answer = await client.post(path, json={"model": "sim", **body})
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert error["message"].startswith("prompt is too long: ")
    assert "This model's maximum context length is " in error["message"]
    if not path.startswith("/v1/messages"):
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)
