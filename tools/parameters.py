"""Takes the request fields of the clients' SDKs and of vLLM's server into `tools/parameters.json`,
and writes `docs/parameters.md`: each field with its verdict.

    python tools/parameters.py --snapshot --vllm SITE_PACKAGES/vllm   # where the SDKs are installed
    python tools/parameters.py                                        # only the page

The verdicts are Penstock's own: a field of the request's body is honoured, unless it stands in
`HARMLESS` or `REFUSED` of `penstock.openai.parameters.table`.
"""

from __future__ import annotations

import argparse
import ast
import json
import tomllib
import typing
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SNAPSHOT = ROOT / "tools/parameters.json"
NOTES = ROOT / "tools/parameters.toml"
PAGE = ROOT / "docs/parameters.md"
SDKS = {
    "/v1/chat/completions": [
        ("openai", "openai.types.chat.completion_create_params:CompletionCreateParamsNonStreaming")
    ],
    "/v1/completions": [
        ("openai", "openai.types.completion_create_params:CompletionCreateParamsNonStreaming")
    ],
    "/v1/decisions": [("openai", "openai.types.decision_create_params:DecisionCreateParams")],
    "/v1/embeddings": [("openai", "openai.types.embedding_create_params:EmbeddingCreateParams")],
    "/v1/audio/speech": [("openai", "openai.types.audio.speech_create_params:SpeechCreateParams")],
    "/v1/audio/transcriptions": [
        (
            "openai",
            "openai.types.audio.transcription_create_params:TranscriptionCreateParamsNonStreaming",
        )
    ],
    "/v1/audio/translations": [
        ("openai", "openai.types.audio.translation_create_params:TranslationCreateParams")
    ],
    "/v1/responses": [
        ("openai", "openai.types.responses.response_create_params:ResponseCreateParamsNonStreaming")
    ],
    "/v1/messages": [
        ("anthropic", "anthropic.types.message_create_params:MessageCreateParamsNonStreaming"),
        ("anthropic", "anthropic.types.beta.message_create_params:MessageCreateParamsNonStreaming"),
        ("anthropic", "anthropic.types.message_count_tokens_params:MessageCountTokensParams"),
        (
            "anthropic",
            "anthropic.types.beta.message_count_tokens_params:MessageCountTokensParams",
        ),
    ],
}
VLLM = {
    "/v1/chat/completions": ["ChatCompletionRequest"],
    "/v1/completions": ["CompletionRequest"],
    "/v1/decisions": [],
    "/v1/embeddings": ["EmbeddingCompletionRequest", "EmbeddingChatRequest"],
    "/v1/audio/speech": [],
    "/v1/audio/transcriptions": ["TranscriptionRequest"],
    "/v1/audio/translations": ["TranslationRequest"],
    "/v1/responses": ["ResponsesRequest"],
    "/v1/messages": ["AnthropicMessagesRequest", "AnthropicCountTokensRequest"],
    "/v1/score": [
        *("ScoreTextRequest", "ScoreQueriesDocumentsRequest"),
        *("ScoreQueriesItemsRequest", "ScoreDataRequest"),
    ],
    "/v1/rerank": ["RerankRequest"],
    "/classify": ["ClassificationCompletionRequest", "ClassificationChatRequest"],
    "/pooling": ["PoolingCompletionRequest", "PoolingChatRequest"],
    "/tokenize": ["TokenizeCompletionRequest", "TokenizeChatRequest"],
    "/detokenize": ["DetokenizeRequest"],
}
FORMS = {
    "/v1/chat/completions": "requests:ChatBody",
    "/v1/completions": "requests:CompletionBody",
    "/v1/decisions": "decisions.openai_form:DecisionBody",
    "/v1/embeddings": "embeddings_api:EmbeddingBody",
    "/v1/audio/speech": "audio:SpeechBody",
    "/v1/audio/transcriptions": "audio:TranscriptionBody",
    "/v1/audio/translations": "audio:TranslationBody",
    "/v1/responses": "responses_api:ResponseBody",
    "/v1/messages": "messages_api:MessageBody",
    "/v1/score": "extensions:ScoreBody",
    "/v1/rerank": "extensions:RerankBody",
    "/classify": "extensions:ClassifyBody",
    "/pooling": "extensions:PoolingBody",
    "/tokenize": "extensions:TokenizeBody",
    "/detokenize": "extensions:DetokenizeBody",
}
HEADERS = {"betas", "user_profile_id", "workspace_id"}
"""Arguments of the SDKs that they send as headers or in the path."""


def snapshot(vllm: Path | None) -> dict[str, Any]:
    """The fields of each endpoint → where they come from."""
    versions = {name: version(name) for name in ("openai", "anthropic")}
    old = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}
    fields: dict[str, dict[str, list[str]]] = {endpoint: {} for endpoint in VLLM}
    for endpoint, field, source in of_sdks():
        known = fields[endpoint].setdefault(field, [])
        if source not in known:
            known.append(source)
    if vllm is not None:
        found = _classes(vllm / "entrypoints")
        versions["vllm"] = _version_beside(vllm)
        for endpoint, names in VLLM.items():
            for field in {field for name in names for field in _fields(name, found)}:
                fields[endpoint].setdefault(field, []).append("vllm")
    else:  # as it was
        versions["vllm"] = old["versions"]["vllm"]
        for endpoint, known in old["endpoints"].items():
            for field, sources in known.items():
                if "vllm" in sources:
                    fields[endpoint].setdefault(field, []).append("vllm")
    return {
        "versions": dict(sorted(versions.items())),
        "endpoints": {endpoint: dict(sorted(known.items())) for endpoint, known in fields.items()},
    }


def of_sdks() -> Iterator[tuple[str, str, str]]:
    """Endpoint, field and SDK of each field of the installed SDKs."""
    for endpoint, places in SDKS.items():
        for source, place in places:
            module, _, name = place.partition(":")
            hints = typing.get_type_hints(getattr(import_module(module), name))
            yield from ((endpoint, field, source) for field in hints if field not in HEADERS)


def _classes(folder: Path) -> dict[str, ast.ClassDef]:
    """The classes of vLLM's protocols, read without importing it."""
    return {
        node.name: node
        for path in sorted(folder.rglob("protocol.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }


def _fields(name: str, found: dict[str, ast.ClassDef]) -> Iterator[str]:
    if name not in found:
        return
    for base in found[name].bases:
        if isinstance(base, ast.Name):
            yield from _fields(base.id, found)
    for node in found[name].body:
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and not node.target.id.startswith(("_", "model_config"))
            and "ClassVar" not in ast.unparse(node.annotation)
        ):
            yield node.target.id


def _version_beside(package: Path) -> str:
    (found,) = package.parent.glob("vllm*.dist-info")
    return found.name.removesuffix(".dist-info").partition("-")[2]


def page(taken: dict[str, Any]) -> str:
    """The text of `docs/parameters.md`."""
    from penstock.openai.parameters.inside import INSIDE, places
    from penstock.openai.parameters.table import HARMLESS, of_form, verdict

    notes = tomllib.loads(NOTES.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {number}" for name, number in taken["versions"].items())
    lines = [notes["head"].strip().replace("VERSIONS", versions), ""]
    for endpoint, fields in taken["endpoints"].items():
        form = form_of(endpoint)
        own = {*form.__struct_fields__, *of_form(HARMLESS, form)} - fields.keys()
        lines += [
            f"## `{endpoint}`",
            "",
            "| field | from | verdict | engines, remarks |",
            "| --- | --- | --- | --- |",
        ]
        for field, sources in [*fields.items(), *((name, ["penstock"]) for name in sorted(own))]:
            given, why = verdict(form, field)
            note = why
            if given == "honoured":
                note = notes.get(endpoint, {}).get(field) or notes["all"].get(field) or why
            lines.append(f"| `{field}` | {', '.join(sources)} | {given} | {note} |")
        lines.append("")
        inside = [
            one
            for name, shape in INSIDE.get(form.__name__, {}).items()
            for one in places(shape, name)
        ]
        if inside:
            lines += ["| inside | honoured | harmless |", "| --- | --- | --- |"]
            lines += [
                f"| `{place}` | {_named(shape.keys)} | {_named(sorted(shape.harmless))} |"
                for place, shape in inside
            ]
            lines.append("")
    return "\n".join(lines)


def _named(keys: Iterable[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys)


def form_of(endpoint: str) -> Any:
    """The form of an endpoint's body."""
    module, _, name = FORMS[endpoint].partition(":")
    return getattr(import_module(f"penstock.openai.{module}"), name)


def main() -> None:
    """Write the snapshot, if that is asked for, and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--snapshot", action="store_true")
    parser.add_argument("--vllm", type=Path)
    given = parser.parse_args()
    if given.snapshot:
        SNAPSHOT.write_text(json.dumps(snapshot(given.vllm), indent=1) + "\n")
    PAGE.write_text(page(json.loads(SNAPSHOT.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
