"""The pages of PDF files as images. Home of pypdfium2."""

from __future__ import annotations

import threading
from io import BytesIO

import pypdfium2
from PIL import Image

from penstock.engines.media.images import MAX_PIXELS
from penstock.errors import RequestError, text_of

DOTS_PER_INCH = 144
MOST_PAGES = 64
_POINTS_PER_INCH = 72
_one_at_a_time = threading.Lock()
"""PDFium must not be used by two threads at once."""


def pages_of(data: bytes) -> list[bytes]:
    """Each page of a PDF as a PNG file, at 144 dots an inch. Takes long. Raises `RequestError` for
    a damaged or encrypted file, more than 64 pages, or more pixels than an engine takes by default.
    """
    with _one_at_a_time:
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            raise RequestError(f"the PDF cannot be read: {text_of(error)}", param="image") from None
        try:
            return _drawn(document)
        except pypdfium2.PdfiumError as error:
            raise RequestError(
                f"a page of the PDF cannot be drawn: {text_of(error)}", param="image"
            ) from None
        finally:
            document.close()


def _drawn(document: pypdfium2.PdfDocument) -> list[bytes]:
    if len(document) > MOST_PAGES:
        raise RequestError(
            f"the PDF has {len(document)} pages, more than {MOST_PAGES}", param="image"
        )
    scale = DOTS_PER_INCH / _POINTS_PER_INCH
    sizes = [document.get_page_size(number) for number in range(len(document))]
    pixels = sum(int(width * scale) * int(height * scale) for width, height in sizes)
    if pixels > MAX_PIXELS:
        raise RequestError(
            f"the pages of the PDF have {pixels:,} pixels, more than {MAX_PIXELS:,}", param="image"
        )
    files: list[bytes] = []
    for page in document:
        image: Image.Image = page.render(scale=scale).to_pil()
        file = BytesIO()
        image.convert("RGB").save(file, "PNG", compress_level=1)
        files.append(file.getvalue())
    return files
