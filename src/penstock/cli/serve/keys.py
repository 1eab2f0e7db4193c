"""Files of API keys, which are read again when they change, so that keys are exchanged while the
server runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from penstock import env
from penstock.errors import ConfigError
from penstock.serve.api.auth import load_keys
from penstock.serve.api.exchange import IngressState
from penstock.serve.config.settings import HttpSettings

LOOK_S = 1.0
"""How often the files are looked at, in seconds."""
_log = logging.getLogger("penstock.serve")

Keys = dict[str, frozenset[str]]


def keys_of(options: Mapping[str, Any], configured: HttpSettings) -> Keys:
    """The keys of the command line, of the environment and of what is `configured`, by the names of
    their settings. Raises `ConfigError`.
    """
    users = load_keys(options["api_key_file"], env.api_keys(), options["keys"])
    admins = load_keys(options["admin_key_file"], env.admin_keys())
    return {
        "api_keys": configured.api_keys | users,
        "admin_keys": configured.admin_keys | admins,
    }


class KeyFiles:
    """The files of keys that `options` name. Each holds at least one key, also later, so a server
    with keys never becomes one without.
    """

    def __init__(self, options: Mapping[str, Any], configured: HttpSettings) -> None:
        self._options, self._configured = options, configured
        given = (options["api_key_file"], options["admin_key_file"])
        self._files = [file for file in given if file is not None]
        self._seen: list[Any] | None = None
        # A pipe can be read once only.
        self._can_follow = bool(self._files) and all(map(os.path.isfile, self._files))

    async def follow(self, ingress: IngressState) -> None:
        """Let the ingress check the keys that the files have, from now on until it is cancelled."""
        while self._can_follow:
            keys = await asyncio.to_thread(self.changed)
            if keys is not None:
                before, ingress.settings = ingress.settings, replace(ingress.settings, **keys)
                if before != ingress.settings:
                    _log.info("the files of keys have changed: %s", ingress.settings)
            await asyncio.sleep(LOOK_S)

    def changed(self) -> Keys | None:
        """The keys, if a file has changed since the last call; None if none has, or if one cannot
        be used: then the log says so, and the keys of before stay.
        """
        seen = [_stamp(file) for file in self._files]
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            return keys_of(self._options, self._configured)
        except ConfigError as error:
            _log.error("the API keys stay as they were: %s", error)
            return None


def _stamp(file: str) -> Any:
    """What changes with the content of a file, or with the file that a link leads to."""
    try:
        found = os.stat(file)
    except OSError as error:
        return error.errno
    return stat.S_IFMT(found.st_mode), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
