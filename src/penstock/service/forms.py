"""Reads multipart forms with one file, which is written to the disk as it comes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from unicodedata import category
from uuid import uuid4

from msgspec.structs import replace

from penstock import private_files
from penstock.errors import ContentTypeError, PenstockError, RequestError
from penstock.observability import escaped
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.interrupt import Interrupt
from penstock.serve.api.limits import check_coding, take_body, too_large
from penstock.service.content import unavailable

_MOST_FIELDS = 20
_LONGEST_FIELD = 1 << 16
_OVERHEAD = 1 << 16
"""The bytes that a form may have beside its file."""
_LONGEST_NAME = 255
_LONGEST_BOUNDARY = 256
"""The limit of the parser; RFC 2046 allows 70 bytes."""


class Form:
    """The fields of a form, and its file: its local path, and its name at the client."""

    def __init__(self, path: Path) -> None:
        self.fields: dict[str, str] = {}
        self.path = path
        self.filename: str | None = None

    def close(self) -> None:
        """Delete the file, be it read whole or not."""
        self.path.unlink(missing_ok=True)


async def read_form(exchange: Exchange, folder: Path, file_field: str, most: int) -> Form:
    """The form of a request. Its file, of at most `most` bytes, is put into `folder`. Raises
    `RequestError`.
    """
    check_coding(exchange.request)
    form = Form(folder / f"incoming-{uuid4().hex}")
    try:
        reader = _Reader(form, exchange.request.headers.get("content-type", ""), file_field, most)
        try:
            limits = replace(exchange.limits, max_body_bytes=most)
            async with Interrupt(None, exchange.ingress.live):
                await take_body(exchange.request, limits, reader.feed, _OVERHEAD)
            reader.finish()
        finally:
            reader.close()
    except BaseException:
        form.close()
        raise
    return form


class _Reader:
    def __init__(self, form: Form, content_type: str, file_field: str, most: int) -> None:
        from python_multipart.multipart import MultipartParser, parse_options_header

        kind, options = parse_options_header(content_type.encode("latin-1"))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 1 <= len(boundary) <= _LONGEST_BOUNDARY:
            raise ContentTypeError(
                "the content type must be multipart/form-data, with a boundary of 1 to"
                f" {_LONGEST_BOUNDARY} bytes"
            )
        self._options = parse_options_header
        self._form = form
        self._file_field = file_field
        self._most = most
        self._file: Any = None
        self._size = 0
        self._header: tuple[bytes, bytes] = (b"", b"")
        self._disposition = b""
        self._name = ""
        self._is_file = False
        self._value = b""
        self._ended = False
        self._parser: Any = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._over,
            },
        )

    def feed(self, part: bytes) -> None:
        try:
            self._parser.write(part)
        except PenstockError:
            raise
        except (ValueError, LookupError):  # the parser's errors are ValueErrors
            raise _broken() from None
        except OSError as error:
            raise unavailable(error) from error

    def finish(self) -> None:
        if not self._ended:
            raise _broken()
        if self._file is None:
            raise RequestError(f"{self._file_field} is missing", param=self._file_field)
        try:
            self._file.flush()
        except OSError as error:
            raise unavailable(error) from error

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what was flushed is stored
                self._file.close()

    def _begin(self) -> None:
        self._header, self._disposition, self._value = (b"", b""), b"", b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        name, value = self._header
        self._header = (_bounded(name + data[start:end]), value)

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        name, value = self._header
        self._header = (name, _bounded(value + data[start:end]))

    def _header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = (b"", b"")

    def _headers(self) -> None:
        _, options = self._options(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._is_file = self._name == self._file_field
        if self._name in self._form.fields:
            raise RequestError(f"{self._name} stands twice in the form", param=self._name)
        if not self._is_file:
            if len(self._form.fields) >= _MOST_FIELDS:
                raise RequestError(f"a form has at most {_MOST_FIELDS} fields")
            return
        if self._file is not None:
            raise RequestError(f"{self._name} stands twice in the form", param=self._name)
        self._form.filename = safe_name(options.get(b"filename", b"").decode(errors="replace"))
        self._file = open(  # noqa: SIM115 (it is open from part to part)
            self._form.path, "wb", opener=private_files.opener
        )

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._size += end - start
            if self._size > self._most:
                raise too_large(self._most)
            self._file.write(memoryview(data)[start:end])
        else:
            self._value = _bounded(self._value + data[start:end])

    def _end(self) -> None:
        if not self._is_file:
            self._form.fields[self._name] = self._value.decode(errors="replace")

    def _over(self) -> None:
        self._ended = True


def _bounded(value: bytes) -> bytes:
    if len(value) > _LONGEST_FIELD:
        raise RequestError(f"a field of a form has at most {_LONGEST_FIELD} bytes")
    return value


def safe_name(given: str) -> str:
    """A name to show: without folders and control characters. No path is made of it."""
    name = given.replace("\\", "/").rpartition("/")[2]
    # Names have wide spaces, which Python does not call printable.
    kept = "".join(c if category(c) == "Zs" else escaped(c) for c in name)
    return kept[:_LONGEST_NAME] or "file"


def _broken() -> RequestError:
    return RequestError("the multipart form cannot be read: it must be whole")
