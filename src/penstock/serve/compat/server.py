"""`LLMServer` with the life, methods and forms of `ray.serve.llm`'s, over Penstock's own server.

It is a face: a request becomes one of the HTTP API of its own model, in this process, and what that
answers becomes Ray's objects. A subclass may override the methods that take a request, and those of
operators; then all requests for the model go through it, from whatever ingress they come.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec
from starlette.types import ASGIApp

from penstock.engines.base import LLMEngine
from penstock.errors import ConfigError, RequestError, UnsupportedError
from penstock.llm_config import LLMConfig, LoraConfig
from penstock.llm_config.engine_choice import chosen_engine
from penstock.serve.adapters import AdapterStore, AdapterVersion, adapter_cache
from penstock.serve.api.exchange import IngressState
from penstock.serve.api.ingress import IngressApp
from penstock.serve.compat.asking import answers
from penstock.serve.compat.faced import FacedModel, check_class, overridden
from penstock.serve.compat.forms import (
    is_neutral,
)
from penstock.serve.compat.hosts import Given, Here, Host, hosts, settings_of
from penstock.serve.models.control import parse_control
from penstock.serve.models.data_parallel import DPServer as OwnDPServer
from penstock.serve.models.handle import ModelHandle, ModelNames
from penstock.serve.models.local import LocalModel, server_class
from penstock.serve.models.server import LLMServer as OwnServer, make_engine
from penstock.types import ChatRequest, CompletionRequest

NOT_CALLED = (
    *("_init_multiplex_loader", "_start_engine", "_batch_output_stream"),
    *("_maybe_resolve_lora_from_multiplex", "_maybe_add_request_id_to_request"),
    *("_get_batch_interval_ms", "_pd_handle_request", "_prepare_prefill_request"),
    *("_prepare_decode_request", "_concurrent_decode", "_maybe_prewarm"),
)
"""Methods of Ray's servers that nothing here calls, so that a class which overrides one would be
ignored.
"""


class _Awaited(type):
    """A class with an asynchronous constructor: `await cls(…)` is a finished instance. Ray Serve
    calls the constructor itself.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        of: Any = cls
        if not inspect.iscoroutinefunction(of.__init__):
            return super().__call__(*args, **kwargs)
        return _made(of.__new__(of), *args, **kwargs)


async def _made(instance: Any, *args: Any, **kwargs: Any) -> Any:
    await instance.__init__(*args, **kwargs)
    return instance


class LLMServer(metaclass=_Awaited):
    """One model behind the methods of Ray's servers. `await LLMServer(config)` is started;
    `LLMServer.sync_init(config)` waits for `await start()`. `await stop()` ends it.

    `engine_cls` replaces the engine: one of ours, or one of Ray's form. `model_downloader` is a
    class like Ray's `LoraModelLoader`. A request is a pydantic model of Ray, of vLLM or of
    `penstock.serve.openai_api_models`, or a mapping; a neutral one of `penstock.types` gives the
    neutral results. Raises `ConfigError` for a subclass that overrides what is not called.
    """

    own_server_cls: ClassVar[type[OwnServer] | None] = None
    """Penstock's server underneath; None for that of the configuration."""
    runs_on: ClassVar[str | None] = None
    """The one engine that its models run on; None for that of the configuration."""
    _default_engine_cls: ClassVar[Any] = None
    _host: Host | None = None
    _about: Mapping[str, Any] = {}
    _engine: LLMEngine | None = None
    _app: ASGIApp | None = None

    if TYPE_CHECKING:  # what a call gives is awaited before it is an instance

        def __await__(self) -> Generator[Any, None, Self]: ...

    async def __init__(  # type: ignore[misc]  # awaited by `_Awaited`, or by Ray
        self,
        llm_config: LLMConfig,
        *,
        engine_cls: type | None = None,
        model_downloader: type | None = None,
    ) -> None:
        self._init_shared(llm_config, engine_cls, model_downloader)
        await self.start()

    def _init_shared(
        self,
        llm_config: LLMConfig,
        engine_cls: type | None = None,
        model_downloader: type | None = None,
    ) -> None:
        check_class(type(self), NOT_CALLED)
        self._llm_config = self.configured(llm_config)
        self._engine_cls = engine_cls or self._get_default_engine_class()
        self._model_downloader = model_downloader

    def _get_default_engine_class(self) -> Any:
        return self._default_engine_cls

    @classmethod
    def sync_init(
        cls,
        llm_config: LLMConfig,
        *,
        engine_cls: type | None = None,
        model_downloader: type | None = None,
    ) -> Any:
        """An instance that is not started: `await start()` does it."""
        made = cls.__new__(cls)
        made._init_shared(llm_config, engine_cls, model_downloader)
        return made

    @classmethod
    def configured(cls, given: Any) -> LLMConfig:
        """The configuration with the engine of this class. Raises `ConfigError`."""
        config = _config(given)
        if cls.runs_on is None:
            return config
        engine, _ = chosen_engine(msgspec.structs.replace(config, server_cls=cls))
        return msgspec.structs.replace(config, llm_engine=engine)

    @classmethod
    def around(cls, model: LocalModel) -> ModelHandle:
        """The model as ingresses see it, where this class is its `server_cls`."""
        return FacedModel(model, partial(cls._made_around, model))

    @classmethod
    async def _made_around(cls, model: LocalModel) -> Any:
        made: Any = cls.__new__(cls)
        made._host = Given(model)
        await made.__init__(model.config)
        return made

    # Life
    async def start(self) -> None:
        """Load the model. Raises `EngineStartError` or `EngineTimeoutError`."""
        if self._host is None:
            self._host = await self._made_host()
        model = self._host.model
        if self._model_downloader is not None:
            config = self._llm_config
            model.server.store = _DownloadedAdapters(config, self._model_downloader)
        await self._host.start()
        self._engine = model.server.engine
        self._app = None

    @property
    def engine(self) -> Any:
        """The running engine, which is that of `engine_cls` where a class is given; None before
        `start`.
        """
        engine: Any = self._engine
        return engine if engine is None or not engine.in_rays_form else engine.inner

    async def _made_host(self) -> Host:
        own = self._own_config(self._llm_config)
        engine = make_engine(own, self._engine_cls) if self._engine_cls is not None else None
        if (runtime := hosts()) is not None:
            host = await runtime.replica(own, engine, self._outside, self._about)
            if host is not None:
                return host
        return Here(own, engine)

    @classmethod
    def _own_config(cls, config: LLMConfig) -> LLMConfig:
        """The configuration of the server underneath."""
        own = cls.own_server_cls
        return config if own is None else msgspec.structs.replace(config, server_cls=own)

    def _outside(self, model: LocalModel) -> ModelHandle:
        return FacedModel(model, self._myself) if overridden(type(self)) else model

    async def _myself(self) -> LLMServer:
        return self

    def _names(self, model: ModelHandle) -> ModelNames:
        paths = {} if self._llm_config.lora_config is None else {model.model_id: ""}
        return ModelNames({model.model_id: model}, lora_paths=paths)

    async def stop(self) -> None:
        """Take no more requests and free everything."""
        host, self._host = self._host, None
        if host is not None:
            await host.stop()

    def __del__(self) -> Any:
        """Ray Serve calls this when it stops a replica, and awaits it."""
        placed = self._host is not None and not isinstance(self._host, (Here, Given))
        return self.stop() if placed else None

    async def llm_config(self) -> LLMConfig:
        """The configuration that the server was made with."""
        return self._llm_config

    @classmethod
    def get_deployment_options(cls, llm_config: LLMConfig) -> dict[str, Any]:
        """The options of `serve.deployment` for this server. Raises `ConfigError`."""
        config = cls.configured(llm_config)
        check_class(cls, NOT_CALLED)
        own, runtime = server_class(cls._own_config(config)), hosts()
        if runtime is None:
            return own.get_deployment_options(config)
        return runtime.options(own, config)

    # Requests
    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        """Continue a conversation. The generator gives lists of strings, each a server-sent event,
        if the request streams; else one `ChatCompletionResponse`. What fails is an `ErrorResponse`.
        """
        return await self._run_request(
            request,
            engine_method="chat",
            batch_output_stream=True,
            raw_request_info=raw_request_info,
        )

    async def completions(
        self, request: Any, raw_request_info: Any = None
    ) -> AsyncGenerator[Any, None]:
        """Continue a prompt; as `chat`, with a `CompletionResponse`."""
        return await self._run_request(
            request,
            engine_method="completions",
            batch_output_stream=True,
            raw_request_info=raw_request_info,
        )

    async def embeddings(
        self, request: Any, raw_request_info: Any = None
    ) -> AsyncGenerator[Any, None]:
        """Gives one `EmbeddingResponse`, or an `ErrorResponse`."""
        return await self._run_request(
            request, engine_method="embeddings", raw_request_info=raw_request_info
        )

    async def transcriptions(
        self, request: Any, raw_request_info: Any = None
    ) -> AsyncGenerator[Any, None]:
        """Gives one `TranscriptionResponse`, or an `ErrorResponse`."""
        return await self._run_request(
            request, engine_method="transcriptions", raw_request_info=raw_request_info
        )

    async def score(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        """Gives one `ScoreResponse`, or an `ErrorResponse`."""
        return await self._run_request(
            request, engine_method="score", raw_request_info=raw_request_info
        )

    async def tokenize(
        self, request: Any, raw_request_info: Any = None
    ) -> AsyncGenerator[Any, None]:
        """Gives one `TokenizeResponse`, or an `ErrorResponse`."""
        return await self._run_request(
            request, engine_method="tokenize", raw_request_info=raw_request_info
        )

    async def detokenize(
        self, request: Any, raw_request_info: Any = None
    ) -> AsyncGenerator[Any, None]:
        """Gives one `DetokenizeResponse`, or an `ErrorResponse`."""
        return await self._run_request(
            request, engine_method="detokenize", raw_request_info=raw_request_info
        )

    async def _run_request(
        self,
        request: Any,
        *,
        engine_method: str,
        batch_output_stream: bool = False,
        raw_request_info: Any = None,
    ) -> AsyncGenerator[Any, None]:
        if is_neutral(request):
            return self._neutral(engine_method, request)
        return answers(
            self._api, engine_method, request, raw_request_info, hosts(), batch_output_stream
        )

    async def _neutral(self, task: str, request: Any) -> AsyncGenerator[Any, None]:
        server = self._started().server
        if task in ("chat", "completions"):
            if not isinstance(request, (ChatRequest, CompletionRequest)):
                raise RequestError(f"{task} takes a request, not a {type(request).__name__}")
            async with aclosing(server.generate(request)) as batches:
                async for batch in batches:
                    for delta in batch:
                        yield delta
        else:
            yield await server.answer(task, request)

    def _api(self) -> ASGIApp:
        """The HTTP API of the server's own model, for the caller of its methods."""
        model = self._started()
        if self._app is None:
            settings = settings_of(self._about)
            inner = msgspec.structs.replace(
                settings,
                api_keys=frozenset(),
                store=None,
                batches=None,
                console=False,
                engine_app=None,
                limits=msgspec.structs.replace(settings.limits, max_inflight=None),
                dev=False,
            )
            state = IngressState(self._names(model), inner)
            state.is_replica = True
            self._app = IngressApp(state)
        return self._app

    def _started(self) -> LocalModel:
        if self._host is None or self._engine is None:
            raise RequestError("the server is not started: await its start()")
        model: LocalModel = self._host.model
        return model

    # What operators ask. As in Ray, nothing happens to a server that is not started.
    async def sleep(self, **kwargs: Any) -> None:
        """Give the memory back: `level` (1), and `mode`, "wait" (default) or "abort"."""
        await self._operate("sleep", kwargs)

    async def wakeup(self, **kwargs: Any) -> None:
        """Undo `sleep`. Raises `UnsupportedError` for vLLM's `tags`: the whole model wakes."""
        if kwargs.pop("tags", None):
            raise UnsupportedError(
                "the whole model wakes at once, so there are no tags", param="tags"
            )
        await self._operate("wakeup", kwargs)

    async def is_sleeping(self) -> bool:
        """Whether the model was put to sleep."""
        return bool(await self._operate("is_sleeping", {}))

    async def pause(self, **kwargs: Any) -> None:
        """Let new requests wait. Those under way end (`mode` "abort", as in Ray), finish ("wait")
        or rest ("keep"). `clear_cache` (True) then empties the prefix cache, if the engine can.
        """
        await self._operate("pause", {"mode": "abort", "clear_cache": True, **kwargs})

    async def resume(self, **kwargs: Any) -> None:
        """Undo `pause`: requests that wait are answered."""
        await self._operate("resume", kwargs)

    async def is_paused(self) -> bool:
        """Whether the model was paused."""
        return bool(await self._operate("is_paused", {}))

    async def reset_prefix_cache(self) -> None:
        await self._operate("reset_prefix_cache", {})

    async def start_profile(self) -> None:
        await self._operate("start_profile", {})

    async def stop_profile(self) -> None:
        """End a profile and write it."""
        await self._operate("stop_profile", {})

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,  # noqa: ASYNC109  # Ray's signature
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Call a method on every worker of the engine, within `timeout` seconds. Gives one result a
        worker.
        """
        options = {"method": method, "args": list(args), "kwargs": dict(kwargs or {})}
        return list(await self._operate("collective_rpc", {**options, "timeout": timeout}) or ())

    async def load_lora_adapter(
        self, lora_name: str, lora_path: str, load_inplace: bool = False
    ) -> None:
        """Make an adapter known by its directory or URL, and load it."""
        options = {"lora_name": lora_name, "lora_path": lora_path, "load_inplace": load_inplace}
        await self._operate("load_lora_adapter", options)

    async def unload_lora_adapter(self, lora_name: str) -> None:
        """Forget an adapter, and free its weights in the engine."""
        await self._operate("unload_lora_adapter", {"lora_name": lora_name})

    async def _operate(self, method: str, options: Mapping[str, Any]) -> Any:
        if self._engine is None:
            return None
        parsed = parse_control(method, options)
        return await getattr(self._started().server, method)(**parsed)

    async def check_health(self) -> None:
        """Raise if the replica should be replaced. A dead engine is started again first."""
        if self._host is None:
            return
        check = getattr(self._host, "check_health", None) or self._host.model.server.check_health
        await check()

    # For Ray Serve
    async def record_replica_metadata(self) -> dict[str, Any]:
        """The replica's address, for every handle's router."""
        found: dict[str, Any] = await getattr(self._host, "record_replica_metadata", _nothing)()
        return found

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The number of running and queued requests, by which Ray Serve scales."""
        found: dict[str, float] = await getattr(self._host, "record_autoscaling_stats", _nothing)()
        return found

    async def record_routing_stats(self) -> dict[str, Any]:
        """Nothing: replicas tell their ingresses themselves what they hold."""
        return {}

    async def connection(self) -> tuple[LLMConfig, str]:
        """What a handle elsewhere in the cluster needs to send requests directly."""
        return self._llm_config, getattr(self._host, "mark", "")

    async def capabilities(self) -> Any:
        """The capabilities of the running engine."""
        return self._started().server.engine.capabilities

    async def build_asgi_app(self) -> Any:
        """The OpenAI-compatible API of this model, as an ASGI application."""
        model = self._started()
        settings = msgspec.structs.replace(settings_of(self._about), store=None, batches=None)
        return IngressApp(IngressState(self._names(self._outside(model)), settings))

    async def __serve_build_asgi_app__(self) -> Any:
        app, runtime = await self.build_asgi_app(), hosts()
        return app if runtime is None else runtime.at_root(app)


class DPServer(LLMServer):
    """A replica is a group of `engine_kwargs.data_parallel_size` ranks, which lives and dies as a
    whole; in Ray each rank is a replica of its own.
    """

    own_server_cls = OwnDPServer


def _config(given: Any) -> LLMConfig:
    if isinstance(given, LLMConfig):
        return given
    if hasattr(given, "model_dump"):
        given = given.model_dump(exclude_unset=True)
    if not isinstance(given, Mapping):
        raise ConfigError("must be an LLMConfig, or a mapping of one", field="llm_config")
    return LLMConfig.from_dict(given)


async def _nothing() -> dict[str, Any]:
    return {}


class _DownloadedAdapters(AdapterStore):
    """Adapters that a user's own downloader fetches (`model_downloader`).

    It is asked `cls(download_timeout_s=, max_tries=).load_model_from_config(lora_model_id,
    llm_config)` for each new adapter. Its answer has the directory as `local_path`.
    """

    def __init__(self, config: LLMConfig, cls: Any) -> None:
        lora = config.lora_config or LoraConfig()
        super().__init__(lora, adapter_cache())
        self._llm_config = config
        self._downloader = cls(
            download_timeout_s=lora.download_timeout_s, max_tries=lora.max_download_tries
        )

    async def fetch(self, name: str) -> AdapterVersion:
        if name not in self.given:
            found = self._downloader.load_model_from_config(
                lora_model_id=f"{self._llm_config.model_id}:{name}", llm_config=self._llm_config
            )
            found = await found if inspect.isawaitable(found) else found
            self.put(name, found.local_path)
        return await super().fetch(name)
