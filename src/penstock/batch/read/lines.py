"""Lines of files and streams: as they come, in bounded memory, and none in another encoding than
UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from penstock.batch.read.compression import MAGIC
from penstock.errors import InputError
from penstock.parsing import other_encoding

MAX_LINE = 1 << 27
"""The longest line in bytes, a thing to bound memory by. A longer one is one bad row."""

_BLOCK = 1 << 18
_OLD_LINE_END = re.compile(rb"\r[^\n]")


def lines_of(stream: BinaryIO, path: str) -> Iterator[list[bytes | None]]:
    """The lines without their ends, in lists as they come; None for a line that is longer than
    `MAX_LINE`.

    They end with a line feed, before which there may be a carriage return, or all with carriage
    returns alone. Raises `InputError` if this is no text in UTF-8.
    """
    # What has come already: the rest may be long in coming.
    read = getattr(stream, "read1", stream.read)
    block: bytes = read(_BLOCK)
    check_text(block, path)
    end = b"\r" if b"\n" not in block and _OLD_LINE_END.search(block) else b"\n"
    begun: list[bytes] = []  # the parts of a line that has not ended
    length = 0
    while block:
        lines: list[bytes | None] = [*block.split(end)]
        first, last = lines[0], lines.pop()
        assert first is not None
        assert last is not None
        length += len(first)
        if length <= MAX_LINE:
            begun.append(first)
        else:
            begun.clear()
        if lines:
            lines[0] = b"".join(begun) if length <= MAX_LINE else None
            yield lines
            begun = [last]
            length = len(last)
        block = read(_BLOCK)
    if length:
        yield [b"".join(begun) if length <= MAX_LINE else None]


def check_text(head: bytes, path: str) -> None:
    """Raise `InputError` if a file that begins with `head` is no text in UTF-8."""
    encoding = other_encoding(head)
    if encoding is not None:
        raise InputError(
            f"{path}: is {encoding}, not UTF-8; iconv -f {encoding} -t UTF-8 converts it"
        )
    for magic, extension in MAGIC.items():
        if head.startswith(magic):
            raise InputError(
                f"{path}: is compressed, as *{extension} files are; give the file a name that ends"
                " so, or decompress what goes to standard input"
            )
    if head.startswith(b"PAR1"):
        raise InputError(f"{path}: is Parquet, and its name must end in .parquet")
