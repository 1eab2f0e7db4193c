"""Checks an answer against its schema in a process of its own, for what could hold up the event
loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import penstock
from penstock.errors import EngineError

_AT_ONCE = 2
_places: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}


async def check_in_subprocess(schema: str, text: str) -> str | None:
    """What is wrong with an answer, None for nothing. A caller who leaves ends the process."""
    loop = asyncio.get_running_loop()
    for other in [one for one in _places if one.is_closed()]:
        del _places[other]
    async with _places.setdefault(loop, asyncio.Semaphore(_AT_ONCE)):
        root = os.path.dirname(os.path.dirname(penstock.__file__))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "penstock.batch.schemas.subprocess"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            },
        )
        try:
            said, _ = await process.communicate(json.dumps([schema, text]).encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode:
        raise EngineError(f"the process that checks answers ended with {process.returncode}")
    why: str | None = json.loads(said)
    return why


def _main() -> None:
    from penstock.batch.schemas.structured import Schema

    schema, text = json.load(sys.stdin)
    why = None
    try:
        Schema(json.loads(schema)).parse(text)
    except ValueError as error:
        why = str(error)
    json.dump(why, sys.stdout)


if __name__ == "__main__":
    _main()
