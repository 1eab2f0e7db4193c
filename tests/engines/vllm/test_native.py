"""How vLLM's own application is called; another one stands in for it. No engine is started."""

import asyncio
from importlib import import_module
from typing import Any

import pytest

from penstock.errors import ContextLengthError, EngineError, RequestError
from penstock.types import RerankRequest, TranscriptionRequest, TranscriptionSegment

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


class App:
    """An ASGI application, built already."""

    state = None

    def __init__(self, answer):
        self.answer = answer

    async def __call__(self, scope, receive, send):
        from starlette.requests import Request

        response = await self.answer(Request(scope, receive))
        await response(scope, receive, send)


def native(answer):
    front: Any = None
    made = import_module("penstock.engines.vllm.running").NativeApp(front, "m")
    made._app = App(answer)
    return made


def reply(body, status=200):
    from starlette.responses import JSONResponse

    return JSONResponse(body, status)


async def test_a_call_that_is_given_up_ends_in_the_application():
    begun, given_up = asyncio.Event(), False

    async def answer(request):
        nonlocal given_up
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up = True
            raise

    call = asyncio.create_task(native(answer).scores(RerankRequest("q", ["d"])))
    await begun.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert call.cancelled()
    assert given_up


async def test_a_recording_goes_as_a_form():
    async def answer(request):
        form = await request.form()
        assert await form["file"].read() == b"\r\n--sound\x00"
        given = {name: form[name] for name in form if name != "file"}
        assert given == {"model": "m", "language": "de", "response_format": "verbose_json"}
        assert request.url.path == "/v1/audio/translations"
        segment = {"id": 0, "start": 0.0, "end": 1.5, "text": "ja"}
        return reply({"text": "ja", "segments": [segment], "language": "de", "duration": "1.5"})

    recording = TranscriptionRequest(b"\r\n--sound\x00", "de", "translate", timestamps=True)
    made = await native(answer).transcription(recording)
    assert (made.text, made.language, made.duration) == ("ja", "de", 1.5)
    assert made.segments == (TranscriptionSegment(0.0, 1.5, "ja"),)


@pytest.mark.parametrize(("language", "param"), [("xx", "language"), ("en", None), (None, None)])
async def test_a_language_that_is_refused_is_named(language, param):
    async def answer(request):
        return reply({"error": {"message": "Unsupported language: 'xx'.", "param": None}}, 400)

    with pytest.raises(RequestError) as refused:
        await native(answer).transcription(TranscriptionRequest(b"", language))
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (400, "no such thing", RequestError),
        (400, "this model's maximum context length is 8", ContextLengthError),
        (503, "gone", EngineError),
    ],
)
async def test_a_refusal_is_the_error_that_its_status_stands_for(status, message, error):
    async def answer(request):
        assert await request.json() == {"model": "m", "text_1": "q", "text_2": ["d"]}
        return reply({"error": {"message": message, "param": "input"}}, status)

    with pytest.raises(error, match=message):
        await native(answer).scores(RerankRequest("q", ["d"]))
