"""OpenAI's own client over speech, on the embedded engine."""

import io
import json

import pytest

from penstock.engines.openvino.speech import read_recording
from serve_process import serving
from speech_models import OPTIONS, hearing_model, recording, speaking_model

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = {"ear": hearing_model(folder, letters=True), "mouth": speaking_model(folder)}
    configs = [
        {
            "model_loading_config": {"model_id": name, "model_source": source},
            "engine_kwargs": OPTIONS | ({"word_timestamps": True} if name == "ear" else {}),
        }
        for name, source in models.items()
    ]
    file = folder / "models.yaml"
    file.write_text(json.dumps({"llm_configs": configs}))
    with serving(str(file)) as process:
        yield process.url


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def heard(client, audio=None, **options):
    asked = {"model": "ear", "language": "en", "extra_body": {"max_tokens": 24}} | options
    return client.audio.transcriptions.create(
        file=("a.wav", io.BytesIO(audio or recording(1))), **asked
    )


def test_forms_of_a_transcription(client):
    text = heard(client).text
    assert heard(client, response_format="text").strip() == text
    verbose = heard(
        client, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert (verbose.duration, verbose.language) == (1.0, "en")
    assert verbose.segments
    assert verbose.words
    assert heard(client, response_format="srt").startswith("1\n00:00:0")
    assert heard(client, prompt="quick brown fox").text != text


def test_a_streamed_transcription_is_the_whole_one(client):
    audio = recording(65)
    events = list(heard(client, audio, stream=True))
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert events[-1].type == "transcript.text.done"
    assert "".join(deltas) == events[-1].text == heard(client, audio).text
    assert events[-1].usage.output_tokens == 24


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_translation(client):
    found = client.audio.translations.create(
        model="ear", file=("a.wav", io.BytesIO(recording(1))), extra_body={"max_tokens": 8}
    )
    assert found.text


def test_a_broken_recording_is_a_400(client):
    for audio in (b"<html>", b"ID3" + bytes(300)):
        with pytest.raises(openai.BadRequestError, match="audio is not usable") as caught:
            heard(client, audio)
        assert caught.value.param == "file"
        with pytest.raises(openai.BadRequestError, match="audio is not usable"):
            list(heard(client, audio, stream=True))


def test_speech(client, tmp_path):
    ask = {"model": "mouth", "voice": "default", "input": "the lazy dog"}
    whole = client.audio.speech.create(**ask, response_format="wav").content
    assert len(read_recording(whole, 60)) > 16_000 // 10
    with client.audio.speech.with_streaming_response.create(
        **ask, response_format="wav"
    ) as response:
        response.stream_to_file(tmp_path / "a.wav")
    assert (tmp_path / "a.wav").read_bytes() == whole
    for refused in ({"voice": "alloy"}, {"speed": 2.0}, {"instructions": "whisper"}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.audio.speech.create(**{**ask, "response_format": "wav", **refused})
        assert caught.value.param in refused


def test_speech_as_mp3(client):
    pytest.importorskip("av")
    spoken = client.audio.speech.create(model="mouth", voice="default", input="the lazy dog")
    assert spoken.response.headers["content-type"] == "audio/mpeg"
    assert len(read_recording(spoken.content, 60))


def test_models_of_other_kinds_refuse(client):
    with pytest.raises(openai.BadRequestError, match="transcriptions"):
        heard(client, model="mouth")
    with pytest.raises(openai.BadRequestError, match="speech"):
        client.audio.speech.create(model="ear", voice="default", input="a", response_format="wav")
