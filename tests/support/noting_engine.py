"""A simulated engine that notes each prompt in the file that NOTED_PROMPTS names, a line each."""

from __future__ import annotations

import os

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.tasks import Batches
from penstock.engines.token_engine import GenerateRequest


class NotingEngine(SimulatedEngine):
    """Notes a prompt before it answers."""

    async def continue_prompt(self, request: GenerateRequest) -> Batches:
        file = os.open(os.environ["NOTED_PROMPTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{request.prompt!r}\n".encode())
        os.close(file)
        async for batch in super().continue_prompt(request):
            yield batch
