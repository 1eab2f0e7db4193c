"""vLLM's own HTTP application around a running engine, for what it serves best, and for those who
want it whole.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import uuid
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec

from penstock.engines.vllm.faults import one_line
from penstock.engines.vllm.front import Front
from penstock.engines.vllm.library import (
    FlexibleArgumentParser,
    build_app,
    init_app_state,
    make_arg_parser,
)
from penstock.errors import ContextLengthError, EngineError, PenstockError, RequestError
from penstock.types import (
    RerankRequest,
    Scores,
    Transcription,
    TranscriptionRequest,
    TranscriptionSegment,
    Usage,
)

Scope = dict[str, Any]


class NativeApp:
    """vLLM's ASGI application. It is built when it is first used."""

    def __init__(self, front: Front, name: str) -> None:
        self._front = front
        self._name = name
        self._app: Any = None
        self._building = asyncio.Lock()

    async def state(self) -> Any:
        """The application's state, which holds vLLM's handlers, its renderer and its parsers."""
        async with self._building:
            if self._app is None:
                args = _arguments(self._front, self._name)
                tasks = await self._front.llm.get_supported_tasks()
                app = build_app(args, tasks, self._front.llm.model_config)
                await init_app_state(self._front.llm, app.state, args, tasks)
                app.state.server = (
                    SimpleNamespace()
                )  # vLLM tells it to exit when the engine has died
                self._app = app
        return self._app.state

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        await self.state()
        await self._app(scope, receive, send)

    async def scores(self, request: RerankRequest) -> Scores:
        """Score documents. Raises what the error that comes back stands for, as does
        `transcription`.
        """
        body = {"model": self._name, "text_1": request.query, "text_2": request.documents}
        answer = await self._post("/score", "application/json", json.dumps(body).encode())
        ordered = sorted(answer["data"], key=lambda item: item["index"])
        return Scores([item["score"] for item in ordered], _usage(answer))

    async def transcription(self, request: TranscriptionRequest) -> Transcription:
        fields = {
            "language": request.language,
            "max_completion_tokens": request.max_tokens,
            "response_format": "verbose_json" if request.timestamps else "json",
        }
        given = {name: str(value) for name, value in fields.items() if value is not None}
        path = (
            "/v1/audio/translations" if request.task == "translate" else "/v1/audio/transcriptions"
        )
        answer = await self._post_file(path, request.audio, given)
        segments = answer.get("segments")
        return Transcription(
            answer["text"],
            _usage(answer),
            None
            if segments is None
            else tuple(msgspec.convert(segments, list[TranscriptionSegment])),
            answer.get("language"),
            None if answer.get("duration") is None else float(answer["duration"]),
        )

    async def _post_file(self, path: str, file: bytes, fields: Mapping[str, str]) -> dict[str, Any]:
        """Post a form with a file, named "file"."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="'
        parts = [
            f'{head}{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in {"model": self._name, **fields}.items()
        ]
        parts += [
            f'{head}file"; filename="audio"\r\n\r\n'.encode(),
            file,
            f"\r\n--{boundary}--\r\n".encode(),
        ]
        return await self._post(path, f"multipart/form-data; boundary={boundary}", b"".join(parts))

    async def _post(self, path: str, content_type: str, body: bytes) -> dict[str, Any]:
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"content-type", content_type.encode()),
                (b"content-length", str(len(body)).encode()),
            ],
            "client": None,
            "server": None,
        }
        status, answer, sent = 500, bytearray(), False
        gone = asyncio.Event()  # never: the caller waits

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if sent:
                await gone.wait()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Mapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                answer.extend(message.get("body", b""))

        await self(scope, receive, send)
        result = json.loads(bytes(answer) or b"{}")
        if status >= 400:
            raise _error(status, result)
        assert isinstance(result, dict)
        return result


def _arguments(front: Front, name: str) -> Any:
    """The arguments of vLLM's server that would have started this engine."""
    args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    for field in dataclasses.fields(front.args):
        setattr(args, field.name, getattr(front.args, field.name))
    args.structured_outputs_config = front.config.structured_outputs_config
    args.served_model_name = [name]
    args.enable_prompt_tokens_details = True
    for key, value in front.options.frontend.items():
        setattr(args, key, value)
    return args


def _error(status: int, body: Mapping[str, Any]) -> PenstockError:
    told = body.get("error", body)
    message = one_line(ValueError(told.get("message", told) if isinstance(told, Mapping) else told))
    if status >= 500:
        return EngineError(message)
    if "context length" in message or "maximum model length" in message:
        return ContextLengthError(f"prompt is too long: {message}")
    param = told.get("param") if isinstance(told, Mapping) else None
    return RequestError(message, param=param if isinstance(param, str) else None)


def _usage(answer: Mapping[str, Any]) -> Usage:
    usage = answer.get("usage") or {}
    return Usage(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)
