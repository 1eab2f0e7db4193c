"""The contract, through Penstock's own server."""

import pytest
import pytest_asyncio

from penstock.engines.remote.engine import RemoteEngine
from penstock.errors import UnsupportedError
from penstock.testing import EngineContract
from penstock.types import EmbeddingRequest, RerankRequest, TranscriptionRequest
from scripted_api import penstock_serve, simulated


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    with penstock_serve(simulated(output_tokens=40, max_num_seqs=16, max_model_len=4096)) as url:
        engine = RemoteEngine("sim", engine_kwargs={"base_url": url, "concurrency": 16})
        await engine.start()
        yield engine
        await engine.stop()


@pytest.mark.asyncio(loop_scope="module")
class TestContract(EngineContract):
    async def test_what_the_server_can_do_is_known(self, engine):
        capabilities = engine.capabilities
        assert capabilities.tasks == {
            *("chat", "completions", "decide", "embeddings", "score", "rerank"),
            *("tokenize", "detokenize"),
        }
        assert capabilities.structured == {"json_schema", "json_object"}
        assert (capabilities.context_length, capabilities.max_top_logprobs) == (4096, 5)
        assert capabilities.prefix_caching
        assert not capabilities.token_ids

    async def test_embeddings_and_scores_come_as_from_the_engine_itself(self, engine):
        embedded = await engine.embeddings(EmbeddingRequest(["a", "bc"], dimensions=3))
        assert [len(vector) for vector in embedded.vectors] == [3, 3]
        assert embedded.usage.prompt_tokens == 3
        request = RerankRequest("red house", ["a red house", "blue", "house"])
        for scored in (await engine.rerank(request), await engine.score(request)):
            assert scored.scores == [1.0, 0.0, 0.5]

    async def test_what_the_server_lacks_is_refused_here(self, engine):
        with pytest.raises(UnsupportedError, match="remote"):
            await engine.transcriptions(TranscriptionRequest(b"RIFF"))
