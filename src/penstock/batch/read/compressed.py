"""Compressed files, read as their content."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Callable
from typing import BinaryIO, cast

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\x00": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
"""By its first bytes, the extension of a compressed file."""
_BLOCK = 1 << 16
_Decompressor = bz2.BZ2Decompressor | lzma.LZMADecompressor


def decompressed(raw: BinaryIO, path: str) -> BinaryIO:
    """The content of the open file `raw`, decompressed as its name says; closes `raw` too."""
    match os.path.splitext(path.lower())[1]:
        case ".gz":
            stream = gzip.GzipFile(fileobj=raw, mode="rb")
            stream.myfileobj = cast(io.FileIO, raw)  # so that closing the stream closes it too
            return cast(BinaryIO, io.BufferedReader(stream))
        case ".bz2":
            return cast(BinaryIO, io.BufferedReader(_Members(raw, bz2.BZ2Decompressor)))
        case ".xz":
            return cast(BinaryIO, io.BufferedReader(_Members(raw, lzma.LZMADecompressor)))
        case ".zst":
            import pyarrow as pa  # which is installed anyway, and reads several frames as one

            return cast(BinaryIO, pa.CompressedInputStream(raw, "zstd"))
        case _:
            return raw


class _Members(io.RawIOBase):
    """The members of a compressed file, one after the other.

    `bz2` and `lzma` have such readers too. But these end without an error at a member whose
    beginning is damaged, so that its rows and all later rows would be missing.
    """

    def __init__(self, raw: BinaryIO, make: Callable[[], _Decompressor]) -> None:
        self._raw = raw
        self._make = make
        self._member = make()
        self._begun = False  # whether the member has had data

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
