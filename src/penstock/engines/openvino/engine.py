"""The parent's side of the embedded engine. Imports nothing of OpenVINO."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

import msgspec

from penstock.config import parse_options
from penstock.cores import usable_cores
from penstock.engines.base import Stated
from penstock.engines.decisions.prompts import RequestTexts
from penstock.engines.decisions.trie import Shares
from penstock.engines.disk.sources import check_adapter, describe
from penstock.engines.media.audio import joined, pieces_of, window_listener
from penstock.engines.openvino.constraints.pool import Constraints
from penstock.engines.openvino.constraints.throttle import SERVING_SECONDS
from penstock.engines.openvino.logits.second_copy import SecondCopy, is_biased, needs_scores
from penstock.engines.openvino.media_files import media_files
from penstock.engines.openvino.model.draft import check_draft, needs_whole_prompts
from penstock.engines.openvino.model.files import (
    MODEL_KINDS,
    instruction_for,
    instructions_of,
    sees,
)
from penstock.engines.openvino.model.gguf import check_gguf_tokenizer
from penstock.engines.openvino.model.source import (
    check_tokenizer,
    find_model,
    lack_of,
    recipe_of,
)
from penstock.engines.openvino.model.stated import stated, stated_context_length, stated_inputs
from penstock.engines.openvino.options import (
    COSTS_ONLY,
    COSTS_ONLY_PROPERTIES,
    DETERMINISTIC_OPTIONS,
    Load,
    OpenVINOOptions,
    check_search_options,
)
from penstock.engines.process import Call
from penstock.engines.sampling import naming_input
from penstock.engines.tasks import Batches
from penstock.engines.templates.chat_template import (
    check_variables,
    read_template,
    template_options,
)
from penstock.engines.token_engine import GenerateRequest
from penstock.engines.worker_engine import WorkerEngine
from penstock.errors import EngineDeadError, EngineStartError, RequestError, UnsupportedError
from penstock.openai.media.images import Images
from penstock.openai.media.parts import Videos, seen
from penstock.types import (
    ChatRequest,
    DecideRequest,
    EmbeddingRequest,
    Scores,
    Speech,
    SpeechRequest,
    StructuredOutput,
    Transcription,
    TranscriptionRequest,
    Usage,
)

_TEMPLATES = ("chat_template", "default_chat_template_kwargs")
_OF_TASK = {
    "generate": (
        *("prompt_lookup", "draft_model", "cache_eviction", "sparse_attention"),
        *_TEMPLATES,
        *("tool_call_parser", "reasoning_parser"),
    ),
    "embed": (
        *("embedding_pooling", "embedding_normalize"),
        *("query_instruction", "document_instruction"),
    ),
    "transcribe": ("word_timestamps",),
    "speak": ("voices",),
}
"""By option that changes answers, the one task whose models take it."""
_DEFAULTS = OpenVINOOptions()
_NOT_SEEING = ("tokenizer", "prompt_lookup", "draft_model", "cache_eviction", "sparse_attention")


class OpenVINOEngine(WorkerEngine):
    """OpenVINO GenAI in a process of its own. `engine_kwargs` are those of `OpenVINOOptions`."""

    name: ClassVar[str] = "openvino"
    costs_only: ClassVar[frozenset[str]] = COSTS_ONLY
    worker: ClassVar[str] = "penstock.engines.openvino.worker"
    operations: ClassVar[frozenset[str]] = WorkerEngine.operations | {
        "sleep",
        "wakeup",
        "is_sleeping",
    }

    @classmethod
    def conversion_of(cls, model_source: str) -> int | None:
        return recipe_of(model_source)

    def __init__(self, model_source: str, **kwargs: Any) -> None:
        super().__init__(model_source, **kwargs)
        self.options = _for_this_machine(
            parse_options(OpenVINOOptions, self.engine_kwargs, "engine_kwargs")
        )
        self.deterministic = self.options.deterministic
        self.tool_call_parser = self.options.tool_call_parser
        self.reasoning_parser = self.options.reasoning_parser
        if self.options.chat_template is not None:
            self.chat_template = read_template(self.options.chat_template)
        check_variables(self.options.default_chat_template_kwargs)
        self.template_variables = self.options.default_chat_template_kwargs
        for name, path in self.adapters.items():
            check_adapter(name, path)
        self.beside: SecondCopy = SecondCopy(self._release_logits)
        self._asleep = False
        self._constraints: Constraints | None = None
        self._instructions: dict[str | None, str] = {None: ""}

    @classmethod
    def deciding_options(cls, engine_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        deciding = super().deciding_options(engine_kwargs)
        properties = {
            name: value
            for name, value in deciding.pop("properties", {}).items()
            if name.upper() not in COSTS_ONLY_PROPERTIES
        }
        if properties:
            deciding["properties"] = properties
        if deciding.get("chat_template") is not None:  # the file's content decides, not its path
            deciding["chat_template"] = read_template(deciding["chat_template"])
        return deciding

    @classmethod
    def deterministic_options(cls) -> dict[str, Any]:
        return {"deterministic": True}

    def stated_context_length(self) -> int | None:
        return self.options.max_model_len or stated_context_length(self.model_source)

    def stated(self) -> Stated:
        return stated(self.model_source, self.options.task)

    def describe(self) -> None:
        describe(self.model_source)

    @property
    def shares_steps(self) -> bool:
        return "completions" in self.capabilities.tasks

    def stated_inputs(self) -> tuple[str, ...]:
        return stated_inputs(self.model_source, self.options.task)

    def lacks(self) -> str:
        options = self.options
        lack = lack_of(self.model_source, options.task, options.weight_format, options.conversion)
        return "" if lack is None else str(lack)

    # Life
    async def _load_message(self) -> Load:
        files = await asyncio.get_running_loop().run_in_executor(
            None,
            find_model,
            self.model_source,
            self.options.task,
            self.options.max_model_len,
            self.options.weight_format,
            self.options.conversion,
        )
        if self.options.tokenizer is not None:
            check_tokenizer(self.options.tokenizer, files.task)
        elif files.path.suffix == ".gguf":
            check_gguf_tokenizer(files.path)
        self.model_kind = MODEL_KINDS[files.task]
        refused = [name for task, names in _OF_TASK.items() if task != files.task for name in names]
        if sees(files.path) and files.task == "embed":
            self.model_kind = "an embedding model that sees"
            refused = [name for name in refused if name not in _TEMPLATES]
            self._instructions = instructions_of(
                files.path,
                self.options.query_instruction,
                self.options.document_instruction,
                "last_token",
            )
        elif sees(files.path):
            self.model_kind = "a vision-language model"
            refused += _NOT_SEEING
        else:
            refused.append("image_urls")
        if "video" not in stated_inputs(str(files.path), files.task):
            refused.append("video_frames")
        for name in refused:
            if getattr(self.options, name) != getattr(_DEFAULTS, name):
                raise EngineStartError(
                    f"'{self.model_source}' is {self.model_kind}, which takes no {name}"
                )
        check_draft(self.options, files.path)
        if self._constraints is None:
            self._constraints = Constraints(
                self.options.tokenizer or str(files.path),
                lambda: self.idle_seconds < SERVING_SECONDS,
            )
        options = self.options
        if needs_whole_prompts(options):
            step = max(options.max_num_batched_tokens, files.context_length)
            options = msgspec.structs.replace(options, max_num_batched_tokens=step)
        if self.cores is not None and not options.num_threads and options.device == "CPU":
            options = _for_this_machine(
                msgspec.structs.replace(options, num_threads=len(self.cores))
            )
        return Load(str(files.path), files.task, files.context_length, options, self.sharing)

    async def stop(self) -> None:
        await super().stop()
        self.beside.lost()
        constraints, self._constraints = self._constraints, None
        if constraints is not None:
            await constraints.stop()

    @property
    def watched(self) -> bool:
        return self.options.device == "CPU"

    async def check_health(self) -> None:
        if not self._asleep:
            await super().check_health()

    # Requests
    async def _constraint(self, structured: StructuredOutput) -> StructuredOutput:
        if self._constraints is None:
            raise EngineDeadError(self._why_dead, suspects=False)
        return await self._constraints.grammar(structured)

    async def _files(self, images: Images, videos: Images) -> tuple[tuple[bytes, ...], Videos]:
        return await media_files(images, videos, self.options)

    async def answer(self, task: str, request: Any) -> Any:
        match task:
            case "score" | "rerank":
                self._check_task("rerank")
                return msgspec.convert(
                    await self._call("rerank", request.query, request.documents), Scores
                )
            case "transcriptions":
                self._check_task(task)
                return await self._transcribed(request)
            case "speech":
                self._check_task(task)
                return await self._spoken(request)
        return await super().answer(task, request)

    async def _transcribed(self, request: TranscriptionRequest) -> Transcription:
        """The text of a recording, window by window. The worker keeps the recording meanwhile."""
        key, listener = next(self._ids), window_listener.get()
        try:
            windows = await self._call("open_recording", key, request.audio)
            parts: list[Transcription] = []
            language, left = request.language, request.max_tokens
            for window in range(windows):
                answer = await self._call(
                    "transcribe",
                    *(key, window, language, request.task, left, request.timestamps),
                    *(request.words, request.prompt, request.hotwords),
                )
                parts.append(msgspec.convert(answer, Transcription))
                if listener is not None:
                    listener(window, parts[-1])
                language = language or parts[0].language
                if left is not None:
                    left -= parts[-1].usage.completion_tokens
                    if left <= 0:
                        break
        finally:
            self._tell(Call(next(self._ids), "close_recording", [key]))
        return joined(parts)

    async def _spoken(self, request: SpeechRequest) -> Speech:
        """A text as speech, piece by piece: models speak a sentence or two best."""
        parts: list[Speech] = []
        for piece in pieces_of(request.text, self.capabilities.context_length):
            answer = await self._call("speak", piece, request.voice, request.speed)
            parts.append(msgspec.convert(answer, Speech))
        return Speech(
            b"".join(part.pcm for part in parts),
            parts[0].rate,
            Usage(sum(part.usage.prompt_tokens for part in parts)),
        )

    async def _embed_arguments(self, request: EmbeddingRequest) -> tuple[Any, ...]:
        inputs: Sequence[Any] = request.inputs
        if "image" in self.capabilities.inputs:
            instruction = instruction_for(self._instructions, request.input_type)
            prompts: list[Any] = []
            for number, one in enumerate(inputs):
                with naming_input(number, len(inputs)):
                    prompts.append(await self._prompt_of(one, instruction))
            inputs = prompts
        about = request.dimensions, request.input_type, request.truncate, request.vectors
        return inputs, *about, request.packed

    async def _prompt_of(
        self, given: str | list[int] | ChatRequest, instruction: str
    ) -> tuple[str, tuple[bytes, ...], str]:
        """The prompt that a vision model embeds, the files of its images, and the mark for each."""
        if isinstance(given, list):
            raise UnsupportedError(
                "an embedding model that sees takes texts and images, no token ids", param="input"
            )
        chat = given if isinstance(given, ChatRequest) else ChatRequest([])
        if isinstance(given, str) and given:
            chat = ChatRequest([{"role": "user", "content": given}])
        if not chat.messages:
            raise RequestError("an input is empty", param="input")
        messages, images, _ = seen(chat.messages, self.capabilities.inputs, self.name)
        if instruction and messages[0].get("role") != "system":
            messages = [{"role": "system", "content": instruction}, *messages]
        text = self.template.render(messages, **template_options(chat))
        mark = self.template.mark_of(text, "image", len(images), chat.chat_template)
        return text, (await self._files(images, ()))[0], mark

    async def _release_logits(self) -> None:
        await self._call("release_logits")

    def continue_prompt(self, request: GenerateRequest) -> Batches:
        if request.beams is not None:
            check_search_options(self.options)
        biased = is_biased(request.sampling)
        if self.options.draft_model and request.sampling.temperature > 0 and not biased:
            # GenAI 2026.4.1 would give the words of the draft model.
            raise UnsupportedError(
                "an engine with a draft_model answers greedy requests alone: set temperature to 0,"
                " or start it without",
                param="temperature",
            )
        batches = super().continue_prompt(request)
        beside = biased or needs_scores(request.sampling)
        return self._with_copy(batches) if beside else batches

    async def _with_copy(self, batches: Batches) -> Batches:
        async with self.beside.used(), aclosing(batches):
            async for batch in batches:
                yield batch

    async def label_shares(
        self, texts: RequestTexts, request: DecideRequest
    ) -> tuple[list[Shares], Usage]:
        async with self.beside.used():
            return await super().label_shares(texts, request)

    async def control(self, operation: str, **options: Any) -> Any:
        """Do an operation. To sleep is to end the process, which gives all its memory back."""
        match operation:
            case "sleep":
                self._asleep = True
                self._why_dead = "the openvino engine is asleep"
                await self.stop()
            case "wakeup":
                self._asleep = False
                await self.start()
            case "is_sleeping":
                return self._asleep
            case _:
                return await super().control(operation, **options)


def _for_this_machine(options: OpenVINOOptions) -> OpenVINOOptions:
    """The options with what `deterministic` needs added, and with f32 if there is one thread: bf16
    would end in SIGFPE when the model is loaded on a CPU with AMX.
    """
    if options.deterministic:
        return msgspec.structs.replace(options, **DETERMINISTIC_OPTIONS)
    if (
        options.inference_precision is None
        and options.device == "CPU"
        and 1 in (len(usable_cores()), options.num_threads)
    ):
        return msgspec.structs.replace(options, inference_precision="f32")
    return options
