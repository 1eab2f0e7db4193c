"""The contract that every engine keeps, as a test class to inherit. Needs pytest, pytest-asyncio.

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def engine():
        engine = MyEngine("model")
        await engine.start()
        yield engine
        await engine.stop()

    class TestMyEngine(EngineContract): ...

Tests of abilities that the engine does not declare are skipped. Give `adapters` to have adapters
tested, and `kill` to have the engine's death tested. `SimulatedOptions` has faults and latencies.
"""

from penstock.testing.abilities import (
    ImageVectorContract,
    SpeechContract,
    TranscriptionContract,
)
from penstock.testing.asking import (
    GREEDY,
    PATIENCE,
    Generates,
    answer,
    chat_request,
    check_adapters_mix,
    count_right,
    deltas_of,
    image_request,
    noise,
)
from penstock.testing.contract import EngineContract

__all__ = [
    "GREEDY",
    "PATIENCE",
    "EngineContract",
    "Generates",
    "ImageVectorContract",
    "SpeechContract",
    "TranscriptionContract",
    "answer",
    "chat_request",
    "check_adapters_mix",
    "count_right",
    "deltas_of",
    "image_request",
    "noise",
]
