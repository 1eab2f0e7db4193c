"""Decompresses files as they are read: every member of them, and what is damaged or cut off is an
error.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import BinaryIO, cast

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\x00": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
"""What a compressed file begins with, whatever its name."""

_BLOCK = 1 << 16
_Decompressor = bz2.BZ2Decompressor | lzma.LZMADecompressor


def decompressed(raw: BinaryIO, path: str) -> BinaryIO:
    """The content of the open file `raw`, whose name says how it is compressed. Closing it closes
    `raw`.
    """
    lower = path.lower()
    if lower.endswith(".gz"):
        return cast(BinaryIO, io.BufferedReader(_Gzip(raw)))
    if lower.endswith(".bz2"):
        return cast(BinaryIO, io.BufferedReader(_Members(raw, bz2.BZ2Decompressor)))
    if lower.endswith(".xz"):
        return cast(BinaryIO, io.BufferedReader(_Members(raw, lzma.LZMADecompressor)))
    if lower.endswith(".zst"):
        import pyarrow as pa  # which is there anyway, and reads several frames as one

        return cast(BinaryIO, pa.CompressedInputStream(raw, "zstd"))
    return raw


class _Gzip(gzip.GzipFile):
    """Closes the file below too."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__(fileobj=raw, mode="rb")
        self._below = raw

    def close(self) -> None:
        super().close()
        self._below.close()


class _Members(io.RawIOBase):
    """The members of a file, one after the other.

    `bz2` and `lzma` have such readers too. Those end without a word at a member whose beginning is
    damaged, and the rows in it and after it would be missing.
    """

    def __init__(self, raw: BinaryIO, make: Callable[[], _Decompressor]) -> None:
        self._raw = raw
        self._make = make
        self._member = make()
        self._begun = False  # the member has had data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            data = b""
            if self._member.eof:
                data = self._member.unused_data
                self._member = self._make()
                self._begun = False
            if not data and self._member.needs_input:
                data = self._raw.read(_BLOCK)
                if not data:
                    if self._begun:
                        raise EOFError("the file ends in the middle of its compressed data")
                    return 0
            if not self._begun:
                data = data.lstrip(b"\0")  # padding between members, and at the end
                if not data:
                    continue
                self._begun = True
            found = self._member.decompress(data, len(buffer))
            if found:
                buffer[: len(found)] = found
                return len(found)

    def close(self) -> None:
        super().close()
        self._raw.close()
