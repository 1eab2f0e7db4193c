"""What replicas tell their ingresses of their KV caches: the names of a prompt's blocks go with a
request, and what has become of such names comes back on a stream of its own, as frames as in
`calls`, each a list of changes.
"""

from __future__ import annotations

import array
import sys
from base64 import b64decode, b64encode
from collections.abc import Sequence

import msgspec

from penstock.kv.cached_blocks import Change
from penstock.serve.replicas.calls import MessageReader

PATH = "/penstock/cached"
HEADER = "x-penstock-blocks"
_decode = msgspec.msgpack.Decoder(list[Change]).decode


def header_of(names: Sequence[int]) -> str:
    """Names of 64 bits as a header's value."""
    return b64encode(_as_bytes(array.array("Q", names))).decode()


def names_of(header: str) -> tuple[int, ...]:
    """The names that a header brings; none where it is no such header."""
    try:
        names = array.array("Q", b64decode(header, validate=True))
    except ValueError:
        return ()
    if sys.byteorder == "big":
        names.byteswap()
    return tuple(names)


def _as_bytes(names: array.array[int]) -> bytes:
    if sys.byteorder == "big":
        names.byteswap()
    return names.tobytes()


class ChangeReader(MessageReader):
    """Reads changes from bytes that come in any pieces."""

    def changes_of(self, data: bytes) -> list[Change]:
        """Those that are complete now."""
        return [change for message in self.feed(data) for change in _decode(message)]
