"""What one version writes and another one reads: state of jobs, databases, messages to replicas.

Each form is pinned beside its version. Where a pin no longer holds, ask what becomes of what older
versions wrote. If it is read as before (a new field has a default and, in a list, stands last), pin
the new form. Otherwise raise the version too, so that it is refused with a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import msgspec
import pytest

from penstock.batch.cache import database as answers, shared
from penstock.batch.job.keys import _Head as KeysHead
from penstock.batch.pipeline.cascade import Choice
from penstock.batch.provider.ledger import Entry
from penstock.batch.rows import dedupe
from penstock.batch.rows.row import Outcome, RowError
from penstock.batch.write import manifest
from penstock.batch.write.journal import Record
from penstock.batch.write.parts import Part
from penstock.kv.cached_blocks import Change
from penstock.serve.replicas import frames
from penstock.serve.replicas.messages import Call, Failure
from penstock.serve.store import tables
from penstock.service import batches, database
from penstock.types import Delta, TokenLogprob, ToolCallPart, Usage


def form_of(struct: Any) -> str:
    """Names, types and defaults of a structure's fields, and whether it is written as a list."""
    if not hasattr(struct, "__struct_fields__"):
        return str(struct)
    fields = [
        (field.encode_name, str(struct.__annotations__[field.name]), field.required)
        for field in msgspec.structs.fields(struct)
    ]
    return repr((struct.__name__, bool(struct.__struct_config__.array_like), fields))


FORMS: dict[str, tuple[object, Iterable[Any], str]] = {
    "jobs": (
        manifest.VERSION,
        (
            *(manifest.Manifest, manifest.StreamSum, Record, Outcome, RowError, Usage, Part),
            *(Entry, Choice, KeysHead, dedupe._HEADER.format),
        ),
        "7610833e34b1",
    ),
    "shared answers": (
        (shared._VERSION, answers._MAGIC),
        (answers._TABLE, answers._HEADER.format, Outcome, RowError, Usage),
        "193dca498934",
    ),
    "responses": (tables.VERSION, (tables.SCHEMA,), "d04e3e904b88"),
    "batches": (
        database.VERSION,
        (database._SCHEMA, batches.Batch, batches.Tally, batches.Fault),
        "ecc2723d9d3f",
    ),
    "replicas": (
        frames.PREFACE,
        (
            *(frames.FRAME.format, frames.COUNT.format, Call, Failure, Change),
            *(Delta, ToolCallPart, TokenLogprob, Usage),
        ),
        "58c546ca5c87",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_changes_knowingly(name: str) -> None:
    version, parts, pinned = FORMS[name]
    text = "\n".join((repr(version), *map(form_of, parts)))
    assert blake2b(text.encode(), digest_size=6).hexdigest() == pinned, text
