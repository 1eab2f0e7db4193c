"""The engine protocol, and the table of engines.

An engine runs one model and speaks at the OpenAI level: chat, completions, embeddings and so on, in
the neutral types of `penstock.types`. Batch jobs and servers use it alike. For a task or an
operation that an engine lacks the caller gets a refusal that names the engine.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from msgspec import Struct
from msgspec.structs import replace

from penstock import lazy
from penstock.cores import Cores
from penstock.engines.tasks import Batches, Operations, Tasks, task_of
from penstock.errors import ConfigError, EngineStartError, UnsupportedError
from penstock.kv.base import Connector, Identity, Site
from penstock.kv.cached_blocks import CachedBlocks
from penstock.llm_config.batch import BatchConfig
from penstock.llm_config.engine_choice import PROVIDERS, unknown_engine
from penstock.types import ChatRequest, CompletionRequest

if TYPE_CHECKING:
    from penstock.engines.supervisor import Supervisor

ENGINES: dict[str, str] = {
    "openvino": "penstock.engines.openvino.engine:OpenVINOEngine",
    "remote": "penstock.engines.remote.engine:RemoteEngine",
    "sglang": "penstock.engines.sglang.engine:SGLangEngine",
    "simulated": "penstock.engines.simulated.engine:SimulatedEngine",
    "vllm": "penstock.engines.vllm.engine:VLLMEngine",
}


class Capabilities(Struct, frozen=True):
    """What a started engine can do.

    `tasks` names the protocol methods that answer. `max_concurrency` is how many requests the
    engine works on at once: an admission loop keeps a little more than that in flight, and a batch
    `batch_in_flight` if that is given. `context_length` is in tokens, 0 if unknown. `structured`
    lists the constraint kinds of `types.StructuredOutput`. `max_top_logprobs` is the largest
    `Sampling.logprobs`; -1: the engine gives no log probabilities. `prompt_logprobs`: it gives
    those of prompts too. `logit_bias`: it takes biases, and lists of allowed and forbidden tokens.
    `token_ids`: deltas carry the ids of their tokens. `thoughts_first`: a constraint may begin
    after thoughts. `triggers`: a constraint may apply only to the text that follows a mark. `extra`
    lists the names of `Sampling.extra` that the engine honours. `inputs`: what messages may hold,
    "text" and perhaps "image"; empty if that shows only when a request is sent. `vectors`: the
    kinds of `EmbeddingRequest.vectors` that it makes. Token ids are below `vocabulary`; 0: unknown.
    """

    tasks: frozenset[str]
    context_length: int
    max_concurrency: int
    structured: frozenset[str] = frozenset()
    max_top_logprobs: int = -1
    adapters: bool = False
    prefix_caching: bool = False
    token_ids: bool = True
    batch_in_flight: int = 0
    prompt_logprobs: bool = False
    logit_bias: bool = False
    extra: frozenset[str] = frozenset()
    thoughts_first: bool = False
    triggers: bool = False
    inputs: tuple[str, ...] = ()
    vocabulary: int = 0
    vectors: tuple[str, ...] = ("dense",)


class Stated(NamedTuple):
    """What is known of a model before it is loaded, from options and its files; a field is None if
    it is unknown. The fields are as in `Capabilities`, and empty `inputs` are unknown too. The
    loaded engine may do fewer `tasks` and give fewer `max_top_logprobs`.
    """

    vocabulary: int | None = None
    tasks: frozenset[str] | None = None
    max_top_logprobs: int | None = None
    inputs: tuple[str, ...] = ()


class Room(NamedTuple):
    """The callbacks of who counts the memory that an engine takes after its start. `make` is
    awaited before the engine takes memory, `idle` is called when it is in use no more, `free` when
    the engine has given it back.
    """

    make: Callable[[], Awaitable[None]]
    idle: Callable[[], None]
    free: Callable[[], None]


class Resident(Protocol):
    """Something that takes memory while it is loaded."""

    @property
    def idle_since(self) -> float | None:
        """The event loop's time of its last use; None while it is in use, or must stay."""

    async def unload(self) -> None: ...


class Beside(Resident, Protocol):
    """A part of an engine that is loaded at its first use and unloaded when idle. `room` has the
    callbacks of who counts the memory.
    """

    room: Room | None


class LLMEngine(Tasks, Operations):
    """One model, running. Construct it (cheap, checks its options), `await start()`, use it, `await
    stop()`.

    `model_source` is what `--model` takes: "demo", a directory, a file, or a hub id. `adapters`
    maps the names that requests may use to directories in PEFT form. Errors are raised as
    `penstock.errors`, never returned.

    An engine that exchanges KV caches with others has a `connector`, and an `identity` while it
    runs; its owner may set the `site` before the start. `cached_blocks` reports what the engine has
    cached, if it can report that. A running engine is bound to the event loop that started it, its
    `loop`. A `deterministic` engine gives the same answer to the same request each time.

    An engine implements `generate`, `answer` and, for its `operations`, `control`. It may override
    the methods of tasks and operations instead.
    """

    name: ClassVar[str]
    costs_only: ClassVar[frozenset[str]] = frozenset()
    """The names of options that decide no answer, only memory or time, or that stage faults: a job
    that is resumed may change them. All other options decide.
    """
    makes_ranks: ClassVar[bool] = False
    """Whether this engine starts data-parallel ranks itself, and balances between them."""
    learns: ClassVar[bool] = False
    """Whether the engine asks a server what it can do; after a pause that may be another server."""
    operations: ClassVar[frozenset[str]] = frozenset()
    """The operations that `control` does."""
    capabilities: Capabilities
    site: Site = Site()
    connector: Connector | None = None
    identity: Identity | None = None
    cached_blocks: CachedBlocks | None = None
    loop: asyncio.AbstractEventLoop | None = None
    deterministic: bool = False
    sharing: BatchConfig = BatchConfig()
    """How the engine shares its steps between the classes of requests. The owner may set this
    before the start.
    """
    cores: Cores | None = None
    """The CPU cores for the engine's processes; None: all. The owner may set this before the start.
    vLLM chooses cores itself.
    """
    in_rays_form: bool = False
    """Whether the engine is a user's class in Ray's form, which reads the headers of requests, and
    its configuration when it starts.
    """
    served: bool = False
    """Whether a server uses the engine too: then rows of jobs are of the batch class."""
    beside: Beside | None = None
    """The part of the engine that takes memory beside the model, if there is one."""
    supervisor: Supervisor | None = None
    """The supervisor that holds the engine; None: no supervisor does. See `supervisor_of`."""
    on_death: Callable[[], None] = staticmethod(lambda: None)
    """Called when the engine has died, if it notices that by itself. A server sets this."""

    def __init__(
        self,
        model_source: str,
        *,
        engine_kwargs: Mapping[str, Any] | None = None,
        adapters: Mapping[str, str] | None = None,
    ) -> None:
        self.model_source = model_source
        self.engine_kwargs = dict(engine_kwargs or {})
        self.adapters = dict(adapters or {})

    @property
    def shares_steps(self) -> bool:
        """Whether the started engine lets batch requests into its steps as `sharing` says. With
        another engine, the owner gives them idle slots.
        """
        return False

    def stated_context_length(self) -> int | None:
        """The context in tokens that options or the model's files state; None if they do not."""
        length = self.engine_kwargs.get("max_model_len")
        return length if isinstance(length, int) else None

    def stated(self) -> Stated:
        """What is known of the model before it is loaded."""
        return Stated()

    def describe(self) -> None:
        """Fetch the files that `stated` reads, for a model whose files are elsewhere. May take as
        long as the network does; raises nothing.
        """

    def stated_inputs(self) -> tuple[str, ...]:
        """What messages may hold ("text", "image"), as far as the model's files state it; empty if
        they do not.
        """
        return ()

    def lacks(self) -> str:
        """What is not installed here and the model needs, in a sentence; empty if nothing is known
        to be missing. Loads and fetches nothing.
        """
        return ""

    def brings(self, operation: str) -> bool:
        """Whether the engine does this operation itself."""
        return operation in self.operations or getattr(type(self), operation) is not getattr(
            LLMEngine, operation
        )

    @classmethod
    def deciding_options(cls, engine_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The part of `engine_kwargs` that decides what is answered."""
        return {name: value for name, value in engine_kwargs.items() if name not in cls.costs_only}

    @property
    def deciding_kwargs(self) -> dict[str, Any]:
        """The part of its own options that decides what it answers."""
        return self.deciding_options(self.engine_kwargs)

    @classmethod
    def conversion_of(cls, model_source: str) -> int | None:
        """How a model's files are converted before they run: a number that grows when that changes
        answers. None where they run as they are.
        """
        return None

    @classmethod
    def deterministic_options(cls) -> dict[str, Any]:
        """`engine_kwargs` with which an answer depends on its request alone: not on what else runs,
        on the cache, or on a restart. Raises `ConfigError` where the engine has no such mode.
        """
        raise ConfigError(
            f"the {cls.name} engine cannot promise it", field="deterministic", value=True
        )

    # Life
    async def start(self) -> None:
        """Load the model. Returns when it answers; raises `EngineStartError` if it cannot."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Free everything. Requests in flight end with `EngineDeadError`. Idempotent."""
        raise NotImplementedError

    async def restart(self) -> None:
        """Start again after it died."""
        await self.stop()
        await self.start()

    async def check_health(self) -> None:
        """Return if the engine answers, else raise `EngineDeadError`."""
        raise NotImplementedError

    # Requests
    def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        raise self._unsupported(task_of(request))

    async def answer(self, task: str, request: Any) -> Any:
        if task == "score":
            return await self.rerank(request)
        raise self._unsupported(task)

    async def control(self, operation: str, **options: Any) -> Any:
        if operation in ("is_sleeping", "is_paused"):
            return False
        raise self._unsupported(operation)

    # KV caches
    async def prompt_ids(self, request: ChatRequest | CompletionRequest) -> list[int] | None:
        """The token ids of a request's prompt; None if it has more, such as pictures."""
        raise self._unsupported("prompts as token ids")

    def tell_cached_blocks(self) -> None:
        """Fill `cached_blocks` from the next start on, if the engine can."""

    # Adapters
    @classmethod
    def adapter_options(cls, most: int) -> dict[str, Any]:
        """The `engine_kwargs` that let the engine take `most` adapters at once."""
        return {}

    async def resolve_lora(self, name: str, path: str) -> None:
        """Make the adapter in directory `path` usable as `name`, checking its files first."""
        raise self._unsupported("LoRA adapters")

    async def remove_lora(self, name: str) -> None:
        """Forget an adapter and free what it holds."""
        raise self._unsupported("LoRA adapters")

    async def metrics(self) -> dict[str, float]:
        """The running engine's metrics by name, as far as it has them: `steps` (a counter),
        `requests_running`, `requests_waiting` and `kv_cache_usage` (0 to 1).
        """
        return {}

    def build_asgi_app(self) -> Any:
        """The engine's own HTTP application, where it has one."""
        raise self._unsupported("build_asgi_app")

    def _unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"the {self.name} engine does not support {what}")


def able_together(each: Sequence[Capabilities]) -> Capabilities:
    """What several engines of one model can do if any of them may get a request."""
    return replace(
        each[0],
        max_concurrency=sum(one.max_concurrency for one in each),
        batch_in_flight=sum(one.batch_in_flight for one in each),
    )


def counted_together(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The `metrics` of several engines, summed; the mean of a share."""
    total: dict[str, float] = {}
    for counted in each:
        for name, value in counted.items():
            share = value / len(each) if name == "kv_cache_usage" else value
            total[name] = total.get(name, 0.0) + share
    return total


def with_deterministic(cls: type[LLMEngine], engine_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`engine_kwargs` with the options that make the engine deterministic added. Raises
    `ConfigError` if an option says the opposite, or the engine has no such mode.
    """
    needed = cls.deterministic_options()
    for name, value in needed.items():
        if engine_kwargs.get(name, value) != value:
            raise not_deterministic(name, engine_kwargs[name])
    return {**engine_kwargs, **needed}


def not_deterministic(name: str, value: Any) -> ConfigError:
    """The error of an option of `engine_kwargs` that says the opposite of `deterministic`."""
    return ConfigError(
        "does not go together with deterministic", field=f"engine_kwargs.{name}", value=value
    )


def engine_class(name: str) -> type[LLMEngine]:
    """The class of the engine called `name`, imported now.

    Raises `ConfigError` for an unknown name, `MissingExtraError` where its library is not
    installed.
    """
    try:
        module, _, attribute = ENGINES[name].partition(":")
    except KeyError:
        raise unknown_engine(name, job=name not in PROVIDERS) from None
    cls: type[LLMEngine] = getattr(lazy.require(module, needed_by=f"The {name} engine"), attribute)
    return cls


def conversion_of(engine: str, model_source: str) -> int | None:
    """As the method of the engine with this name. Engines of users convert nothing."""
    return engine_class(engine).conversion_of(model_source) if engine in ENGINES else None


class Versions(Struct, frozen=True):
    """The versions of a library from `oldest` to `newest`, both included. They are compared by as
    many numbers as `oldest` has.

    An older version is refused. A newer one is tried, and named in the error if it fails. An
    unknown version (empty: a source tree) passes.
    """

    package: str
    oldest: tuple[int, ...]
    newest: tuple[int, ...]

    def check(self, installed: str) -> None:
        """Raise `EngineStartError` if the installed version is too old."""
        if installed and self._numbers(installed) < self.oldest:
            raise EngineStartError(
                f"{self.package} {installed} is not supported: the engine works with {self}"
            )

    def note(self, installed: str) -> str:
        """What to add to an error that a version outside the range may explain; else empty."""
        if not installed or self.oldest <= self._numbers(installed) <= self.newest:
            return ""
        return (
            f" ({self.package} {installed} is not among the versions that the engine was tried"
            f" with, {self})"
        )

    def __str__(self) -> str:
        return " to ".join(".".join(map(str, numbers)) for numbers in (self.oldest, self.newest))

    def _numbers(self, version: str) -> tuple[int, ...]:
        numbers = re.findall(r"\d+", version.partition("+")[0])
        return tuple(map(int, numbers[: len(self.oldest)]))
