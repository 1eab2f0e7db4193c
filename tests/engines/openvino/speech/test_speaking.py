"""Speech by a SpeechT5 with random weights."""

from types import SimpleNamespace

import numpy as np
import openvino_genai as genai
import pytest
import pytest_asyncio

from penstock.engines.media.audio import pieces_of
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.openvino.speech import Speaking
from penstock.errors import EngineStartError, RequestError, UnsupportedError
from penstock.testing import SpeechContract
from penstock.types import SpeechRequest
from speech_models import OPTIONS, speaking_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return speaking_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    path = tmp_path_factory.mktemp("voice") / "deep.bin"
    np.random.default_rng(1).standard_normal(512).astype(np.float32).tofile(path)
    return str(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model, voice):
    engine = OpenVINOEngine(model, engine_kwargs={**OPTIONS, "voices": {"deep": voice}})
    await engine.start()
    yield engine
    await engine.stop()


class TestContract(SpeechContract):
    pass


@pytest.mark.asyncio(loop_scope="module")
class TestSpeaking:
    async def test_capabilities(self, engine):
        assert engine.capabilities.tasks == {"speech", "tokenize", "detokenize"}
        assert engine.capabilities.context_length == 450

    async def test_voices_differ(self, engine):
        default = await engine.speech(SpeechRequest("a fox", "default"))
        deep = await engine.speech(SpeechRequest("a fox", "deep"))
        assert (await engine.speech(SpeechRequest("a fox"))) == default
        assert default.pcm != deep.pcm
        with pytest.raises(RequestError, match="it has default, deep") as caught:
            await engine.speech(SpeechRequest("a fox", "alloy"))
        assert caught.value.param == "voice"

    async def test_another_speed_is_refused(self, engine):
        with pytest.raises(UnsupportedError, match="speed 1 only"):
            await engine.speech(SpeechRequest("a fox", speed=2))

    async def test_long_texts_are_spoken_in_pieces(self, model):
        engine = OpenVINOEngine(model, engine_kwargs={**OPTIONS, "max_model_len": 12})
        await engine.start()
        try:
            once = await engine.speech(SpeechRequest("the fox."))
            twice = await engine.speech(SpeechRequest("the fox. the fox."))
            assert twice.pcm == 2 * once.pcm
        finally:
            await engine.stop()

    async def test_a_voice_that_is_no_voice(self, model, tmp_path):
        (tmp_path / "voice").write_bytes(bytes(8))
        for file, why in (("voice", "must be 512 32-bit floats"), ("none", "cannot be read")):
            kwargs = {**OPTIONS, "voices": {"odd": str(tmp_path / file)}}
            with pytest.raises(EngineStartError, match=f"the voice 'odd' .*{why}"):
                await OpenVINOEngine(model, engine_kwargs=kwargs).start()


def test_pieces_are_whole_sentences():
    text = "One. " * 100
    assert "".join(pieces_of(text, 600)).count("One.") == 100
    assert all(len(piece) <= 400 and piece.endswith(".") for piece in pieces_of(text, 600))
    assert max(map(len, pieces_of("word " * 200, 600))) <= 400
    assert max(map(len, pieces_of("x" * 1000, 100))) <= 98
    assert pieces_of(" ", 600) == [""]


def test_a_text_at_which_the_model_fails_spoils_no_other(model, monkeypatch):
    """GenAI keeps what it held of the text, and fails at all that follow."""

    def generate(*_):
        raise RuntimeError("shapes mismatch")

    options = OpenVINOOptions(inference_precision="f32", num_threads=1)
    speaking = Speaking(model, options, 450)
    speaking._pipeline = SimpleNamespace(generate=generate)
    with pytest.raises(RequestError, match="cannot speak this text: shapes mismatch"):
        speaking.speak("a fox", None, 1)
    assert speaking.speak("a fox", None, 1).pcm

    def opened(*_, **__):
        assert not hasattr(speaking, "_pipeline")  # no two at a time
        raise RuntimeError("out of memory")

    speaking._pipeline = SimpleNamespace(generate=generate)
    monkeypatch.setattr(genai, "Text2SpeechPipeline", opened)
    with pytest.raises(SystemExit, match="cannot be opened again: out of memory"):
        speaking.speak("a fox", None, 1)
