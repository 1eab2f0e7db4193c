"""The neutral requests and results of engines, frozen and slotted.

Every engine reads and writes these and nothing else: a row of a data set and an HTTP request look
the same to it. They are msgspec structures, as they cross the pipe to an engine's own process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct, field

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "abort", "error"]
Message = dict[str, Any]
"""One chat message in OpenAI's form: `role`, `content`, perhaps `tool_calls` and others."""


class StructuredOutput(Struct, frozen=True):
    """A constraint on the generated text.

    `spec` holds a JSON Schema as text for "json_schema", a pattern for "regex", EBNF in GBNF's form
    (as XGrammar reads it) for "grammar", and is empty for "json_object". `checked`: the caller
    validates the answer too, so an engine may leave parts that it cannot enforce to the caller.
    `param`: the request's parameter with the constraint, for errors. `after`: thoughts may come
    first, which end with one of these texts; they begin with one of `openers`, or, if there are
    none, at once. `triggers`: the text is free, and what follows each of these is one value of
    `spec`, or a JSON list of them.
    """

    kind: Literal["json_schema", "json_object", "regex", "grammar"]
    spec: str = ""
    checked: bool = False
    param: str = "response_format"
    after: tuple[str, ...] = ()
    openers: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()


class Asked(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A part of a request. A replica of an older version refuses a field that it does not know."""


class Sampling(Asked, frozen=True):
    """How to choose tokens and when to end. Defaults are those of OpenAI's API.

    `max_tokens` None means as many as the context leaves. `temperature` 0 is greedy. `top_k` 0 and
    `min_p` 0 are off. `logprobs` None is off, 0 gives the chosen token's log probability, k > 0 the
    k most likely tokens as well; `prompt_logprobs` is the same of the prompt's tokens. `logit_bias`
    has pairs of a token id and what is added to its logit, from -100 to 100. `allowed_token_ids`
    empty allows all; `bad_words` are texts that the answer must not contain. `unset` names the
    parameters that the request leaves to the model's own defaults, where the engine knows those.
    `extra` holds what only some engines understand, in vLLM's names: see `Capabilities.extra`.
    `whole`: where the context has no room for `max_tokens`, the request is refused; else its answer
    is cut.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    structured: StructuredOutput | None = None
    prompt_logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()
    extra: dict[str, Any] = {}
    whole: bool = False

    @property
    def is_deterministic(self) -> bool:
        """Whether the same request gives the same answer each time."""
        return self.temperature == 0 or self.seed is not None or "use_beam_search" in self.extra


FRACTIONS = tuple([name for name, kind in Sampling.__annotations__.items() if kind == "float"])
"""The fields of `Sampling` that are numbers with a fraction."""
SAME_NAME = (*FRACTIONS, "min_tokens", "top_k", "seed", "ignore_eos")
"""The fields of `Sampling` that bodies of requests and most engines have under the same name."""


class ChatRequest(Asked, frozen=True):
    """One conversation to continue.

    The engine makes `n` answers and streams each under its `Delta.index`. With `stream` False the
    engine sends one delta an answer, which is cheaper. `adapter` names a LoRA adapter that the
    engine holds. Requests of a lower `priority` come first if the engine schedules by it. With
    `parallel_tool_calls` False an answer has at most one tool call. `forward_chunks`: the caller
    streams chunks in OpenAI's form, so an engine that gets such chunks from a server may forward
    them unparsed, in `Delta.chunks`. `kv_transfer_params` go to the engine's KV connector, if it
    has one. `prompt_token_ids` is the result of `LLMEngine.prompt_ids` for this request: the engine
    does not tokenize again. With `continue_final_message` the answer continues the last message's
    text; it holds the new text alone, or with `echo` the whole. Without `add_generation_prompt`
    the prompt ends after the last message. `batch`: the request is of the batch class, and yields
    to those of the online class.
    """

    messages: list[Message]
    sampling: Sampling = Sampling()
    n: int = 1
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    stream: bool = True
    request_id: str = ""
    priority: int = 0
    parallel_tool_calls: bool = True
    forward_chunks: bool = False
    kv_transfer_params: dict[str, Any] | None = None
    prompt_token_ids: list[int] | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    echo: bool = False
    batch: bool = False


class CompletionRequest(Asked, frozen=True):
    """One prompt to continue: text, or token ids. `echo` puts the prompt's text before the answer.

    `special_tokens`: whether the tokenizer adds its own (such as BOS) to a text; false for the
    output of a chat template. `kv_transfer_params`, `prompt_token_ids` and `batch` are as in
    `ChatRequest`.
    """

    prompt: str | list[int]
    sampling: Sampling = Sampling()
    n: int = 1
    echo: bool = False
    adapter: str | None = None
    stream: bool = True
    request_id: str = ""
    priority: int = 0
    special_tokens: bool = True
    kv_transfer_params: dict[str, Any] | None = None
    prompt_token_ids: list[int] | None = None
    batch: bool = False


class EmbeddingRequest(Asked, frozen=True):
    """Texts to embed, token ids as the model reads them (none are added), or conversations, which
    may have images. `dimensions` None gives the model's own width. `input_type` puts the model's
    instruction for queries or for documents before each. `truncate` allows to embed only the
    beginning of a text that is too long; an engine that cannot do so refuses it as without it.
    `vectors`: one for each input ("dense"), one for each token that the model reads, special ones
    included ("multi"), or weights of the vocabulary's tokens ("sparse"), without `dimensions`.
    `packed`: "dense" ones may come as `Embeddings.packed`.
    """

    inputs: Sequence[str | list[int] | ChatRequest]
    dimensions: int | None = None
    request_id: str = ""
    input_type: Literal["query", "document"] | None = None
    truncate: bool = False
    batch: bool = False
    vectors: Literal["dense", "multi", "sparse"] = "dense"
    packed: bool = False


class RerankRequest(Asked, frozen=True):
    """Documents to score against a query. Scores come back in the documents' order, unsorted."""

    query: str
    documents: list[str]
    request_id: str = ""
    batch: bool = False


class ClassifyRequest(Asked, frozen=True):
    """Texts to sort into the model's classes."""

    inputs: list[str]
    request_id: str = ""
    batch: bool = False


class TranscriptionRequest(Asked, frozen=True):
    """Speech to transcribe. `audio` is the bytes of a file.

    With `timestamps` the answer has segments, each with its place in the recording, and with
    `words` it has the words with theirs. `prompt` is a text to go on from, which also shows
    spellings; `hotwords` are words to expect in all of a long recording. `language` is a code such
    as "en"; None: it is detected.
    """

    audio: bytes
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    max_tokens: int | None = None
    request_id: str = ""
    timestamps: bool = False
    batch: bool = False
    words: bool = False
    prompt: str = ""
    hotwords: str = ""


class SpeechRequest(Asked, frozen=True):
    """A text to speak. `voice` None is the model's own; `speed` is relative to the voice's."""

    text: str
    voice: str | None = None
    speed: float = 1.0
    request_id: str = ""
    batch: bool = False


class TokenizeRequest(Asked, frozen=True):
    """A text, or the conversation of `chat`, to turn into the token ids that the model gets.

    `special_tokens`: whether the tokenizer adds its own (such as BOS). `names`: the text of each
    token is wanted as well.
    """

    prompt: str = ""
    chat: ChatRequest | None = None
    special_tokens: bool = False
    names: bool = False


class Tokens(Struct, frozen=True):
    """Token ids, and the text of each where it was asked for."""

    ids: list[int]
    names: list[str] | None = None


class TokenizerInfo(Struct, frozen=True):
    """A model's tokenizer: its class, its chat template (Jinja), and its special tokens by the
    names that templates use (`bos_token`, `eos_token`, `pad_token` …).
    """

    kind: str = ""
    chat_template: str | None = None
    special_tokens: dict[str, str] = field(default_factory=dict)


class Option(Asked, frozen=True):
    """One possible answer to a question. The model is asked to say `label`; `description` tells it
    more. `value` is what the decision holds for it; None: the label.
    """

    label: str
    description: str = ""
    value: str | bool | int | float | None = None


class PredicateQuestion(Asked, frozen=True, tag_field="type", tag="predicate"):
    """Whether a statement about the input is true. Without `instructions` nothing is added to the
    input, which then asks itself. `name` may be empty.
    """

    instructions: str
    name: str = ""


class ChoiceQuestion(Asked, frozen=True, tag_field="type", tag="choice"):
    """Which of the options fits, exactly one; with `several` any number of them, each judged for
    itself. `instructions` and `name` are as in `PredicateQuestion`.
    """

    instructions: str
    options: tuple[Option, ...]
    name: str = ""
    several: bool = False


class ScoreQuestion(Asked, frozen=True, tag_field="type", tag="score"):
    """How much, on a scale of `levels`, lowest first; the `value` of each is a number, and where it
    is None the level's place, from 0. `instructions` and `name` are as in `PredicateQuestion`.
    """

    instructions: str
    levels: tuple[Option, ...]
    name: str = ""


Question = PredicateQuestion | ChoiceQuestion | ScoreQuestion


class DecideRequest(Asked, frozen=True):
    """1 to 400 questions about a text or a conversation. The rest is as in `ChatRequest`."""

    input: str | list[Message]
    questions: tuple[Question, ...]
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    request_id: str = ""
    batch: bool = False


class Usage(Struct, frozen=True):
    """Tokens of one request. `cached_tokens` of the prompt came from the prefix cache, and
    `reasoning_tokens` of the answer are its reasoning, where the engine counts those.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


class TokenLogprob(Struct, frozen=True, array_like=True):
    """One token with its natural-log probability, None where it is unknown, as for a prompt's first
    token. `top` holds the most likely pairs of token and log probability.

    Where the engine knows them: `id`, `raw` (the token's bytes, which need not be whole characters)
    and `rank` (1 for the most likely), and `top_ids` and `top_raw` of the tokens in `top`.
    """

    token: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()
    id: int | None = None
    raw: bytes | None = None
    rank: int | None = None
    top_ids: tuple[int, ...] = ()
    top_raw: tuple[bytes, ...] = ()


class ToolCallPart(Struct, frozen=True, array_like=True):
    """A piece of call `number`. The first piece has `id` and `name`; `arguments` is JSON text."""

    number: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class Delta(Struct, frozen=True, array_like=True):
    """One step's addition to one answer of a request.

    The last delta of an answer has a `finish_reason` and that answer's `usage`; `stop` is the stop
    string that ended it, if any, and `stop_token` the id among `Sampling.stop_token_ids` that did.
    The first of several deltas may have a `usage` of the prompt alone. `chunks` are events of a
    chat's stream as another server wrote them, each from the first of its `choices` to its end;
    they precede `text`. `reasoning` is the model's thinking before its answer, if the engine
    separates the two. `kv_transfer_params` is the message of the engine's KV connector to another
    engine's. `prompt_logprobs` come with an answer's first delta, and `prompt_token_ids` if the
    request asked for token ids.
    """

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    tool_calls: tuple[ToolCallPart, ...] = ()
    stop: str | None = None
    chunks: tuple[bytes, ...] = ()
    reasoning: str = ""
    kv_transfer_params: dict[str, Any] | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    stop_token: int | None = None
    prompt_token_ids: tuple[int, ...] | None = None


class SparseVector(Struct, frozen=True):
    """The weights above 0 of a text: `values`, at the token ids `indices`, which rise."""

    indices: list[int]
    values: list[float]


class Embeddings(Struct, frozen=True, omit_defaults=True):
    """One of the three, as the request's `vectors` says, in the order of the inputs: `vectors`,
    shape (inputs, dimensions); `multi`, of each input shape (tokens, dimensions); `sparse`. In
    `packed` are the numbers of `vectors`, which is empty then, as 32-bit floats, little-endian.
    """

    vectors: list[list[float]]
    usage: Usage = Usage()
    multi: list[list[list[float]]] = []
    sparse: list[SparseVector] = []
    packed: bytes = b""

    def of(self, kind: Literal["dense", "multi", "sparse"]) -> Sequence[Any]:
        """The vectors of this kind; empty if the request asked for another."""
        others = self.multi if kind == "multi" else self.sparse
        return self.vectors if kind == "dense" else others


class Scores(Struct, frozen=True):
    """Relevance of each document to the query, in the documents' order; higher is closer."""

    scores: list[float]
    usage: Usage = Usage()


class TranscriptionSegment(Struct, frozen=True):
    """A part of a recording, from `start` to `end` in seconds."""

    start: float
    end: float
    text: str


class TranscriptionWord(Struct, frozen=True):
    """A word of a recording, from `start` to `end` in seconds."""

    start: float
    end: float
    word: str


class Classification(Struct, frozen=True):
    """One text's most likely class (`label`, its number if it has no name), and those of all."""

    label: str
    probabilities: list[float]


class Classifications(Struct, frozen=True):
    """The class of each text, in the order of the inputs."""

    items: list[Classification]
    usage: Usage = Usage()


class Transcription(Struct, frozen=True):
    """The text of a recording. `segments` and `words` are set if asked for; `language`, a code, and
    `duration`, in seconds, if the engine reports them.
    """

    text: str
    usage: Usage = Usage()
    segments: tuple[TranscriptionSegment, ...] | None = None
    language: str | None = None
    duration: float | None = None
    words: tuple[TranscriptionWord, ...] | None = None


class Speech(Struct, frozen=True):
    """A spoken text: mono samples as 16-bit little-endian PCM, `rate` of them a second."""

    pcm: bytes
    rate: int
    usage: Usage = Usage()

    @property
    def seconds(self) -> float:
        """How long the speech lasts."""
        return len(self.pcm) / 2 / self.rate


class Decision(Struct, frozen=True):
    """The answer to one question.

    `values` and `labels` are those of the options, in the question's order (of a predicate True and
    False), and `probabilities` has theirs, which sum to 1; for a choice of `several` each is that
    of the option itself. `value`: the most likely one (the first of those that are `tied`), a list
    of all with at least 0.5 for `several`, and for a score the expected value. `mass` is the
    probability of the tokens in which the options first part, before it is normalised: near 0 the
    model would say something else. Where it is 0 nothing is known: `value` is None, the
    probabilities are equal.
    """

    name: str
    type: Literal["predicate", "choice", "score"]
    value: str | bool | int | float | list[str | bool | int | float] | None
    values: list[str | bool | int | float]
    probabilities: list[float]
    tied: bool = False
    mass: float = 1.0
    labels: list[str] = []


class Decisions(Struct, frozen=True):
    """The answer to each question, in the order of the questions."""

    items: list[Decision]
    usage: Usage = Usage()
