"""Spans, through OpenTelemetry's own SDK."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from penstock.observability import use_tracer

pytest.importorskip("opentelemetry.sdk")

CHAT = {"model": "sim", "messages": [{"role": "user", "content": "hello"}]}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[Any]:
    """What was recorded, as a function."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    use_tracer(provider.get_tracer("test"))
    yield exporter.get_finished_spans
    use_tracer(None)
    provider.shutdown()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_a_span_of_the_callers_trace(
    client: Any, spans: Any, stream: bool
) -> None:
    headers = {"traceparent": PARENT, "x-request-id": "r1"}
    await client.post("/v1/chat/completions", json={**CHAT, "stream": stream}, headers=headers)
    (span,) = spans()
    assert format(span.context.trace_id, "032x") == PARENT.split("-")[1]
    assert format(span.parent.span_id, "016x") == PARENT.split("-")[2]
    assert (span.name, span.kind.name, span.status.status_code.name) == (
        "POST /v1/chat/completions",
        "SERVER",
        "UNSET",
    )
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "gen_ai.request.model": "sim",
        "gen_ai.usage.input_tokens": 6,
        "gen_ai.usage.output_tokens": 16,
        "penstock.request_id": "r1",
    }
    assert span.end_time > span.start_time


async def test_failures_are_marked_and_the_callers_mistakes_are_not(
    client: Any, spans: Any, ingress: Any
) -> None:
    await client.post("/v1/chat/completions", json={**CHAT, "model": "nobody"})
    await client.get("/no/such/path")
    ingress.ingress.draining = True
    await client.get("/v1/models")
    assert [(s.name, s.attributes["error.type"], s.status.status_code.name) for s in spans()] == [
        ("POST /v1/chat/completions", "model_not_found", "UNSET"),
        ("GET", "not_found", "UNSET"),
        ("GET", "shutting_down", "ERROR"),
    ]


async def test_a_stream_that_breaks_is_a_failed_span(
    spans: Any, served: Any, handle: Any, scripted: Any
) -> None:
    engine = scripted(["a", "b"])
    engine.fail_after = 1
    await engine.start()
    async with served(handle("sim", engine)).client() as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.status_code == 200
    (span,) = spans()
    assert (span.attributes["error.type"], span.status.status_code.name) == (
        "engine_error",
        "ERROR",
    )


@pytest.mark.slow
def test_the_command_sends_its_spans_to_a_collector(serving: Any) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    import httpx

    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            where = f"http://127.0.0.1:{collector.server_port}"
            env = {"OTEL_EXPORTER_OTLP_ENDPOINT": where, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
            with serving("simulated", "--engine", "simulated", "--tracing", env=env) as server:
                httpx.post(f"{server.url}/v1/chat/completions", json={**CHAT, "model": "simulated"})
                assert server.stop() == 0
        finally:
            collector.shutdown()
            thread.join()
    assert {path for path, _ in received} == {"/v1/traces"}
    sent = b"".join(body for _, body in received)
    for text in (
        b"service.name",
        b"penstock",
        b"POST /v1/chat/completions",
        b"gen_ai.usage.output_tokens",
    ):
        assert text in sent
