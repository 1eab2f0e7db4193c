"""A hook of mkdocs: links from docs/ to other files of the repository.

Such a file must exist. The site does not have it, so there the link is its text alone.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

LOG = logging.getLogger("mkdocs.hooks.site")  # a warning fails a strict build
LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Take links that leave docs/ out of the text of a page."""
    folder = Path(page.file.abs_src_path).parent
    docs = Path(config.docs_dir).resolve()

    def plain(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if target.is_relative_to(docs):
            return link[0]
        if not target.exists():
            LOG.warning("%s links to %s, which does not exist", page.file.src_path, link[2])
        return link[1]

    return LINK.sub(plain, markdown)
