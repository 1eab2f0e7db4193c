"""The batches and files of one ingress. Its routes share the stores, which are opened when they are
first needed.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import NamedTuple

from penstock import private_files
from penstock.batch.read.files import filesystem
from penstock.config import masked
from penstock.errors import ConfigError, InputError, UnavailableError
from penstock.serve.api.exchange import IngressState
from penstock.serve.config.settings import BatchSettings
from penstock.service.batches import Batch, BatchStore
from penstock.service.content import Content, unavailable
from penstock.service.database import StateStore, open_state
from penstock.service.files import FileStore, UploadStore
from penstock.service.runner import Runner
from penstock.service.webhooks import Webhooks

DATABASE = "batches.sqlite"


class Stores(NamedTuple):
    """The stores of an ingress, and the runner of its batches."""

    files: FileStore
    uploads: UploadStore
    batches: BatchStore
    runner: Runner


class BatchService:
    """The files and batches of an ingress. Its stores are opened at the first request, or at the
    start if there are batches to go on with. Call `start` and `stop` once each, then `close`.
    """

    def __init__(self, ingress: IngressState, settings: BatchSettings) -> None:
        self.settings = settings
        self.folder = Path(settings.path).expanduser().absolute()
        self._ingress = ingress
        self._webhooks = Webhooks(settings.webhooks)
        self._state: StateStore | None = None
        self._stores: Stores | None = None
        self._opening = asyncio.Lock()
        self._stopped = False

    @property
    def incoming(self) -> Path:
        """The folder of uploads while they come."""
        return self.folder / "incoming"

    async def start(self) -> None:
        """Go on with the batches that an earlier run of the server has left. Raises
        `ConfigError`.
        """
        if (place := self.settings.files) is not None:
            try:
                filesystem(place)  # so that a place that cannot be used is an error at the start
            except InputError as error:
                why = str(error).replace(place, masked(place))
                raise ConfigError(why, field="files", value=masked(place)) from None
        if self._has_state():
            await self._opened()

    async def opened(self) -> Stores:
        """The stores, which are opened now if they are not open. Raises `UnavailableError` after
        `stop`, or if they cannot be opened: a full disk is not the client's fault.
        """
        try:
            return await self._opened()
        except ConfigError as error:
            raise unavailable(error) from error

    async def _opened(self) -> Stores:
        async with self._opening:
            if self._stopped:
                raise UnavailableError("the server is shutting down")
            if self._stores is None:
                state, content = await asyncio.to_thread(self._open)
                self._state = state
                self._stores = self._made(state, content)
                self._stores.runner.start()
            return self._stores

    async def stop(self, grace_s: float, hurry: asyncio.Event | None = None) -> None:
        """Leave the batches to the next server; lines under way have `grace_s` seconds, or until
        `hurry` is set.
        """
        async with self._opening:
            self._stopped = True
            if self._stores is not None:
                await self._stores.runner.stop(grace_s, hurry)
            await self._webhooks.close()

    def close(self) -> None:
        if self._state is not None:
            self._state.close()
            self._state = None

    def _has_state(self) -> bool:
        """Whether there may be batches to go on with. A folder that cannot be read has none."""
        return self.settings.database is not None or os.path.exists(self.folder / DATABASE)

    def _open(self) -> tuple[StateStore, Content]:
        settings = self.settings
        try:
            private_files.make_folder(self.folder)
            private_files.make_folder(self.incoming)
            state = open_state(self.folder / DATABASE, settings.database)
        except OSError as error:
            raise unavailable(error) from error
        try:
            return state, Content(settings.files or self.folder / "files")
        except BaseException:
            state.close()
            raise

    def _made(self, state: StateStore, content: Content) -> Stores:
        settings = self.settings
        files = FileStore(state, content, settings)
        uploads = UploadStore(state, files, self.incoming, settings)
        batches = BatchStore(state, lease_s=settings.lease_s)
        runner = Runner(
            self.folder / "running",
            files,
            batches,
            uploads,
            self._ingress.models,
            self._ingress.settings,
            settings,
            self._told,
            self._ingress.note_batch_line,
        )
        return Stores(files, uploads, batches, runner)

    async def _told(self, batch: Batch) -> None:
        if batch.api == "openai":
            self._webhooks.tell(batch)
