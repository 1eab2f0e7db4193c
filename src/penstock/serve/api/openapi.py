"""The API's OpenAPI document, built from the structures that validate the requests."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

import penstock
from penstock.openai.responses import TRANSCRIPT_FORMATS
from penstock.serve.api.routes import Endpoint

_ERROR = {
    "description": "The request failed.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_ERROR_SCHEMA = {
    "type": "object",
    "description": "`/v1/messages` answers in Anthropic's form: `{type, error: {type, message}}`.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_AUDIO = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "model": {"type": "string"},
        "language": {"type": "string"},
        "response_format": {"enum": list(TRANSCRIPT_FORMATS)},
        "max_tokens": {"type": "integer", "minimum": 1},
    },
}


def describe(endpoints: Iterable[Endpoint], *, with_keys: bool) -> dict[str, Any]:
    """The OpenAPI document of these endpoints. `with_keys`: they need an API key."""
    table = list(endpoints)
    forms = [endpoint.body for endpoint in table if endpoint.body is not None]
    references, schemas = msgspec.json.schema_components(
        forms, ref_template="#/components/schemas/{name}"
    )
    by_form = dict(zip(forms, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in table:
        path = re.sub(r":path}", "}", endpoint.path)
        operation: dict[str, Any] = {
            "summary": " ".join((endpoint.answer.__doc__ or "").partition("\n\n")[0].split()),
            "operationId": f"{endpoint.method.lower()} {path}",
            "responses": {"200": {"description": "The answer."}, "default": _ERROR},
        }
        if endpoint.body is not None:
            content = {"application/json": {"schema": by_form[endpoint.body]}}
            operation["requestBody"] = {"required": True, "content": content}
        elif endpoint.path == "/v1/audio/transcriptions":
            operation["requestBody"] = {
                "required": True,
                "content": {"multipart/form-data": {"schema": _AUDIO}},
            }
        parameters = [{"name": name, "in": "path"} for name in re.findall(r"{(\w+)}", path)]
        if endpoint.path == "/ready" or endpoint.path.startswith("/is_"):
            parameters.append({"name": "model", "in": "query"})
        operation["parameters"] = [
            {**parameter, "required": parameter["in"] == "path", "schema": {"type": "string"}}
            for parameter in parameters
        ]
        if endpoint.public:
            operation["security"] = []
        paths.setdefault(path, {})[endpoint.method.lower()] = operation
    schemas["Error"] = _ERROR_SCHEMA
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": penstock.__version__},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if with_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document
