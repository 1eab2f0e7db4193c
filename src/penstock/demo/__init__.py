"""The demo model: a tiny language model in the package that turns support tickets into JSON.

It only knows where the files are and what a right answer looks like; loading the model is an
engine's job. ``MODEL_CARD.md`` next to this file tells what the model can and cannot do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

MODEL_NAME: Final = "demo"
"""The name that stands for the shipped model wherever a model is accepted."""

ADAPTERS: Final = ("summary", "german")
"""The LoRA adapters shipped with the demo model."""

LORA_ALPHA: Final = 16
LORA_RANK: Final = 8

FIELDS: Final = ("category", "priority", "product", "sentiment")
"""The fields of an answer, in their order."""

CATEGORIES: Final = ("billing", "shipping", "technical", "account", "refund", "feature")
PRIORITIES: Final = ("low", "normal", "high", "urgent")
SENTIMENTS: Final = ("angry", "neutral", "happy")

GERMAN_KEYS: Final[Mapping[str, str]] = {
    "category": "kategorie",
    "priority": "dringlichkeit",
    "product": "produkt",
    "sentiment": "stimmung",
}
GERMAN_LABELS: Final[Mapping[str, str]] = {
    "billing": "Rechnung",
    "shipping": "Versand",
    "technical": "Technik",
    "account": "Konto",
    "refund": "Erstattung",
    "feature": "Wunsch",
    "low": "niedrig",
    "normal": "normal",
    "high": "hoch",
    "urgent": "dringend",
    "angry": "unzufrieden",
    "neutral": "neutral",
    "happy": "zufrieden",
}

SCHEMA: Final[Mapping[str, object]] = {
    "type": "object",
    "properties": {
        "category": {"enum": list(CATEGORIES)},
        "priority": {"enum": list(PRIORITIES)},
        "product": {"type": "string"},
        "sentiment": {"enum": list(SENTIMENTS)},
    },
    "required": list(FIELDS),
    "additionalProperties": False,
}
"""JSON Schema of an answer."""

_HOME: Final = Path(__file__).resolve().parent


def model_path(form: Literal["openvino", "huggingface"] = "openvino") -> Path:
    """Return the directory of the demo model in the form an engine loads."""
    if form not in ("openvino", "huggingface"):
        raise ValueError(f"the demo model has no form {form!r}; use 'openvino' or 'huggingface'")
    return _HOME / "model" / form


def adapter_path(name: str) -> Path:
    """Return the directory (PEFT layout) of one of the demo model's LoRA adapters."""
    if name not in ADAPTERS:
        raise ValueError(f"the demo model has no adapter {name!r}; it has {', '.join(ADAPTERS)}")
    return _HOME / "adapters" / name


def tickets_path() -> Path:
    """Return the sample input: support tickets with gold labels, one JSON object a line."""
    return _HOME / "tickets.jsonl"


def expected(
    labels: Mapping[str, str], adapter: str | None = None, keys: Sequence[str] = FIELDS
) -> str:
    """Return the exact text that is right for a ticket with these gold labels.

    Args:
        labels: the gold labels; fields other than ``FIELDS`` are ignored.
        adapter: None for the model itself, or the name of one of ``ADAPTERS``.
        keys: for a prompt that starts with "Keys: ...", those keys in that order (no adapter).
    """
    if adapter is None:
        return _compact({key: labels[key] for key in keys})
    if tuple(keys) != FIELDS:
        raise ValueError("chosen keys are a skill of the demo model itself, not of its adapters")
    if adapter == "summary":
        topic = (
            "feature request for"
            if labels["category"] == "feature"
            else f"{labels['category']} issue with"
        )
        return (
            f"{labels['priority']} {topic} {labels['product']}, customer is {labels['sentiment']}"
        )
    if adapter == "german":
        german = {
            GERMAN_KEYS[key]: labels[key] if key == "product" else GERMAN_LABELS[labels[key]]
            for key in FIELDS
        }
        return _compact(german)
    raise ValueError(f"the demo model has no adapter {adapter!r}; it has {', '.join(ADAPTERS)}")


def _compact(answer: Mapping[str, str]) -> str:
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
