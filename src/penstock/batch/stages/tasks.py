"""What a row asks of an engine: its `sampling_params`, in the names of vLLM (and SGLang), and the
tasks other than generation: embed, classify, score, decide, transcribe, speak.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from penstock.batch.decisions.questions import option_names, questions_of
from penstock.batch.rows.repair import collect
from penstock.batch.rows.task_forms import embedded
from penstock.batch.stages.base import MAPPING
from penstock.batch.stages.media import Loader
from penstock.batch.stages.text import as_list, conversation, text_in, token_ids
from penstock.batch.values.plain import UnstorableError, plain
from penstock.config import parse_options
from penstock.engines.base import LLMEngine
from penstock.engines.media.audio import audio_file
from penstock.errors import (
    ConfigError,
    EngineError,
    RequestError,
    UnsupportedError,
)
from penstock.openai.constraints import StructuredOutputs, one_constraint
from penstock.openai.extensions import EMBED_TASKS
from penstock.openai.requests import SamplingParameters
from penstock.openai.responses import Answers
from penstock.types import (
    ChatRequest,
    ClassifyRequest,
    DecideRequest,
    EmbeddingRequest,
    RerankRequest,
    Sampling,
    SpeechRequest,
    StructuredOutput,
    TranscriptionRequest,
)

NEEDED = {
    "embed": ("embeddings",),
    "classify": ("classify", "chat"),
    "score": ("score", "rerank"),
    "decide": ("decide",),
    "transcribe": ("transcriptions",),
    "speak": ("speech",),
}
"""By a processor's task, the tasks of an engine of which any one can do it."""

COLUMNS: dict[str, dict[str, str]] = {
    "embed": {
        "pooling_params": "`dimensions`: how many numbers a vector shall have; `input_type`:"
        " 'query' or 'document', for the model's instruction; `task`: 'embed', 'token_embed' (a"
        " vector for each token) or 'sparse_embed' (`indices` and `values`)."
    },
    "classify": {
        "labels": "What a language model has to choose from.",
        "pooling_params": "The same as `labels` in it.",
    },
    "score": {
        "text_1": "One text of a pair (also `query`).",
        "text_2": "The other (also `document`), or a list of others (also `documents`).",
        "query": "One text of a pair.",
        "document": "The other.",
        "documents": "Several others.",
    },
    "decide": {
        "questions": "What is asked of the `prompt` or the `messages`, as in a file of questions.",
    },
    "transcribe": {
        "audio": "The recording: bytes, a path, a URL, or a mapping with `bytes` or `path`.",
        "language": "Its language, such as 'en'; else it is detected.",
        "translate": "Whether the text shall be English.",
        "timestamps": "Whether the times of segments are wanted.",
        "hotwords": "Words to expect.",
    },
    "speak": {"voice": "A voice of the model."},
}

Ask = Callable[[LLMEngine], Awaitable[dict[str, Any]]]

_GREEDY = Sampling(temperature=0.0)
_NO_COLUMNS = ("mm_processor_kwargs", "tokenization_kwargs")


def check_columns(row: Mapping[str, Any]) -> None:
    """Raise `UnsupportedError` for columns that have a meaning in `ray.data.llm`, and that would
    have no effect here.
    """
    for name in _NO_COLUMNS:
        if row.get(name):
            raise UnsupportedError(f"the column '{name}' is not supported", param=name)
    if row.get("multimodal_data") is not None and row.get("messages") is None:
        raise UnsupportedError(
            "images belong into 'messages', not beside a prompt", param="multimodal_data"
        )


def request(
    task: str, row: Mapping[str, Any], *, truncate: bool = False, chat: ChatRequest | None = None
) -> Ask:
    """A function that asks an engine for a row. With `truncate` it may shorten a text to embed;
    `chat` is a conversation to embed instead. Raises `RequestError`.
    """
    if task == "embed":
        return _embed(row, truncate, chat)
    made = {"classify": _classify, "decide": _decide, "score": _score}
    return {**made, "transcribe": _transcribe, "speak": _speak}[task](row)


def _embed(row: Mapping[str, Any], truncate: bool, chat: ChatRequest | None) -> Ask:
    given: Any = row.get("tokenized_prompt")
    params = _pooling(row, "task", "dimensions", "input_type")
    task = params.get("task") or "embed"
    if not isinstance(task, str) or task not in EMBED_TASKS:
        raise RequestError(
            f"pooling_params.task must be one of {', '.join(EMBED_TASKS)}, not {task!r}",
            param="pooling_params.task",
        )
    asked = chat or (text_in(row, "prompt") if given is None else token_ids(given))
    request = EmbeddingRequest(
        [asked],
        params.get("dimensions"),
        input_type=params.get("input_type"),
        truncate=truncate,
        vectors=EMBED_TASKS[task],
    )

    async def ask(engine: LLMEngine) -> dict[str, Any]:
        found, asked = await embedded(engine, request)
        return {
            "prompt": text if isinstance(text := asked.inputs[0], str) else row.get("prompt"),
            "embeddings": msgspec.to_builtins(found.of(request.vectors)[0]),
            "num_input_tokens": found.usage.prompt_tokens,
        }

    return ask


def _score(row: Mapping[str, Any]) -> Ask:
    names = ("text_1", "text_2") if row.get("text_1") is not None else ("query", "document")
    query = text_in(row, names[0])
    several: Any = as_list(row.get("documents" if names[0] == "query" else "text_2"))
    documents = list(several) if isinstance(several, list | tuple) else [text_in(row, names[1])]
    if not all(isinstance(document, str) for document in documents):
        raise RequestError("documents must be texts", param="documents")

    async def ask(engine: LLMEngine) -> dict[str, Any]:
        found = await engine.score(RerankRequest(query, documents))
        return {
            "score": found.scores[0] if len(found.scores) == 1 else None,
            "scores": found.scores,
            "num_input_tokens": found.usage.prompt_tokens,
        }

    return ask


def _decide(row: Mapping[str, Any]) -> Ask:
    try:
        questions = questions_of(as_list(row.get("questions")), None)
    except ConfigError as error:
        raise RequestError(str(error), param="questions") from None
    given: Any = row.get("messages")
    given = text_in(row, "prompt") if given is None else conversation(row)
    request = DecideRequest(given, questions)

    async def ask(engine: LLMEngine) -> dict[str, Any]:
        found = await engine.decide(request)
        pairs = zip(questions, found.items, strict=True)
        return {
            "decisions": {
                question.name: {
                    "value": one.value,
                    "probabilities": dict(
                        zip(option_names(question), one.probabilities, strict=True)
                    ),
                }
                for question, one in pairs
            },
            "num_input_tokens": found.usage.prompt_tokens,
        }

    return ask


def _classify(row: Mapping[str, Any]) -> Ask:
    """By a model that classifies; with `labels`, by a language model that must answer with one."""
    labels = as_list(row.get("labels")) or as_list(_pooling(row, "labels").get("labels"))
    if labels is None and row.get("messages") is None:
        return _classified(text_in(row, "prompt"))
    messages = (
        [{"role": "user", "content": text_in(row, "prompt")}]
        if row.get("messages") is None
        else conversation(row)
    )
    if (
        not isinstance(labels, list | tuple)
        or not labels
        or not all(isinstance(label, str) for label in labels)
    ):
        raise RequestError("the row has no list of texts in column 'labels'", param="labels")
    schema = json.dumps(
        {"type": "object", "properties": {"label": {"enum": list(labels)}}, "required": ["label"]}
    )
    given, _ = sampling_of(row.get("sampling_params") or {"temperature": 0.0, "max_tokens": 64})
    chat = ChatRequest(
        messages=messages,
        sampling=msgspec.structs.replace(given, structured=StructuredOutput("json_schema", schema)),
        stream=False,
    )

    async def ask(engine: LLMEngine) -> dict[str, Any]:
        answers = await collect(engine, chat, Answers)
        answer, usage = answers.texts.get(0, ""), answers.usage
        try:
            label = json.loads(answer)["label"]
        except (ValueError, KeyError, TypeError):
            raise EngineError(f"the answer names no label: {answer[:80]!r}") from None
        return {
            "label": label,
            "finish_reason": answers.reasons.get(0),
            "num_input_tokens": usage.prompt_tokens,
            "num_generated_tokens": usage.completion_tokens,
            "num_cached_tokens": usage.cached_tokens,
        }

    return ask


def _classified(text: str) -> Ask:
    async def ask(engine: LLMEngine) -> dict[str, Any]:
        if "classify" not in engine.capabilities.tasks:
            raise RequestError(
                "a language model needs a list of texts in column 'labels'", param="labels"
            )
        found = await engine.classify(ClassifyRequest([text]))
        return {
            "prompt": text,
            "label": found.items[0].label,
            "probabilities": found.items[0].probabilities,
            # In the column where users of `ray.data.llm` look for the probabilities.
            "embeddings": found.items[0].probabilities,
            "num_input_tokens": found.usage.prompt_tokens,
        }

    return ask


def _transcribe(row: Mapping[str, Any]) -> Ask:
    audio = row.get("audio")
    if audio is None:
        raise RequestError("the row has no column 'audio'", param="audio")
    sampling, _ = sampling_of(row.get("sampling_params"))
    if msgspec.structs.replace(sampling, max_tokens=None, temperature=0.0) != _GREEDY:
        raise UnsupportedError(
            "of sampling_params a transcription follows max_tokens only", param="sampling_params"
        )
    asked = TranscriptionRequest(
        b"",
        row.get("language"),
        "translate" if row.get("translate") else "transcribe",
        sampling.max_tokens,
        timestamps=bool(row.get("timestamps")),
        hotwords=row.get("hotwords") or "",
    )

    async def ask(engine: LLMEngine) -> dict[str, Any]:
        loader = Loader(threads=1)
        try:
            data = await loader.load(audio, "audio")
        finally:
            loader.close()
        found = await engine.transcriptions(msgspec.structs.replace(asked, audio=data))
        return {
            "transcription": found.text,
            "generated_text": found.text,
            "language": found.language,
            "duration": found.duration,
            **({"segments": msgspec.to_builtins(found.segments)} if asked.timestamps else {}),
            "num_input_tokens": found.usage.prompt_tokens,
            "num_generated_tokens": found.usage.completion_tokens,
        }

    return ask


def _speak(row: Mapping[str, Any]) -> Ask:
    text = text_in(row, "prompt")

    async def ask(engine: LLMEngine) -> dict[str, Any]:
        found = await engine.speech(SpeechRequest(text, row.get("voice")))
        return {
            "prompt": text,
            "audio": audio_file(found, "wav"),
            "duration": found.seconds,
            "num_input_tokens": found.usage.prompt_tokens,
        }

    return ask


def _pooling(row: Mapping[str, Any], *known: str) -> Mapping[str, Any]:
    """The row's `pooling_params`. Raises for a parameter that has a value and that the task does
    not know.
    """
    params = row.get("pooling_params")
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise RequestError(
            f"pooling_params must be a dict, not a {type(params).__name__}", param="pooling_params"
        )
    for name, value in params.items():
        if name not in known and value is not None:
            param = f"pooling_params.{name}"
            taken = ", ".join(sorted(known))
            raise UnsupportedError(f"{param} is not supported, but {taken}", param=param)
    return params


# sampling_params
class _Params(SamplingParameters):
    """Takes `None` and vLLM's defaults for any parameter: these change nothing."""

    n: int | None = None
    max_tokens: int | None = None
    prompt_logprobs: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    logprobs: int | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_decoding: StructuredOutputs | None = None
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    detokenize: bool = True
    best_of: int | None = None


def sampling_of(params: Any) -> tuple[Sampling, int]:
    """The sampling and the number of answers in `sampling_params`. Raises `RequestError`."""
    if params is None:
        return Sampling(), 1
    if not isinstance(params, MAPPING):
        raise RequestError(
            f"sampling_params must be a dict, not a {type(params).__name__}",
            param="sampling_params",
        )
    try:
        return _known(**params)
    except TypeError:  # lists cannot be keys of the cache
        return _parsed(params)


def _parsed(params: Mapping[str, Any]) -> tuple[Sampling, int]:
    try:
        # Columnar data gives every row every key; a null key was never there.
        given = {name: value for name, value in plain(dict(params)).items() if value is not None}
        wanted = parse_options(_Params, given, "sampling_params")
    except ConfigError as error:
        raise RequestError(str(error), param=error.field) from None
    except UnstorableError as error:
        raise RequestError(f"sampling_params: {error}", param="sampling_params") from None
    n = 1 if wanted.n is None else wanted.n
    others: dict[str, Any] = {}
    if wanted.best_of not in (None, n):
        if not wanted.use_beam_search:
            raise UnsupportedError(
                "sampling_params.best_of needs use_beam_search", param="sampling_params.best_of"
            )
        others["extra"] = {**wanted.extra, "best_of": wanted.best_of}
    sampling = wanted.to_sampling(
        max_tokens=wanted.max_tokens if wanted.max_tokens is not None else wanted.max_new_tokens,
        min_tokens=wanted.min_tokens or wanted.min_new_tokens or 0,
        logprobs=wanted.logprobs,
        prompt_logprobs=wanted.prompt_logprobs,
        structured=_structured(wanted),
        **others,
    )
    return sampling, n


@lru_cache(maxsize=64, typed=True)
def _known(**params: Any) -> tuple[Sampling, int]:
    """The sampling for numbers and texts, cached: they are mostly the same for all rows."""
    return _parsed(params)


def _structured(wanted: _Params) -> StructuredOutput | None:
    names = ("structured_outputs", "guided_decoding", "json_schema", "regex")
    given = [name for name in names if getattr(wanted, name) is not None]
    if len(given) > 1:
        raise RequestError(
            f"an answer has one form: give one of {' and '.join(given)}",
            param=f"sampling_params.{given[-1]}",
        )
    nested = wanted.structured_outputs or wanted.guided_decoding
    return one_constraint(
        None, nested or StructuredOutputs(json=wanted.json_schema, regex=wanted.regex)
    )
