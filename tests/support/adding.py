"""A stage that adds a number, and processors of such stages."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any

from penstock.batch import Processor, ProcessorConfig, StatefulStage
from penstock.errors import RequestError


class Add:
    """Adds a number; `log` is told of its life."""

    def __init__(self, number: int = 1, log: list[str] | None = None) -> None:
        self.number = number
        self.log = log if log is not None else []

    async def start(self) -> None:
        self.log.append("start")

    async def process(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["x"] == "poison":
            raise RequestError("that is no number")
        return {"x": row["x"] + self.number}

    async def stop(self) -> None:
        self.log.append("stop")


class AddStage(StatefulStage):
    fn = Add

    def get_required_input_keys(self) -> dict[str, str]:
        return {"x": "A number."}


def numbers(count: int) -> list[dict[str, Any]]:
    return [{"id": number, "x": number} for number in range(count)]


def adding(*additions: int, config: Any = None, **options: Any) -> Any:
    config = config or ProcessorConfig()
    return Processor(
        config, [AddStage(fn_constructor_kwargs={"number": n}) for n in additions], **options
    )


async def all_of(stream: AsyncIterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row async for row in stream]
