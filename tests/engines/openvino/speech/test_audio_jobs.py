"""Jobs over recordings, and jobs that speak, on the embedded engine."""

import json
from base64 import b64encode

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

import penstock
from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.speech import read_recording
from penstock.errors import ConfigError, UnsupportedError
from penstock.types import SpeechRequest, TranscriptionRequest
from speech_models import OPTIONS, hearing_model, recording, speaking_model

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    return hearing_model(tmp_path_factory.mktemp("hearing"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ears(hearing):
    engine = OpenVINOEngine(hearing, engine_kwargs=OPTIONS)
    await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mouth(tmp_path_factory):
    engine = OpenVINOEngine(
        speaking_model(tmp_path_factory.mktemp("speaking")), engine_kwargs=OPTIONS
    )
    await engine.start()
    yield engine
    await engine.stop()


async def text_of(engine, audio):
    return (await engine.transcriptions(TranscriptionRequest(audio, "en", max_tokens=8))).text


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_directory_of_recordings(ears, tmp_path):
    folder = tmp_path / "calls"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.wav").write_bytes(recording(0.5, number))
    (folder / "broken.mp3").write_bytes(b"<html>")
    (folder / "notes.txt").write_text("no recording")
    asked = {"engine": ears, "audio": "path", "language": "en", "max_tokens": 8}
    result = await penstock.arun(folder, tmp_path / "out.jsonl", **asked)
    assert (result.counts.ok, result.counts.errors) == (4, {"invalid_request_error": 1})
    found = lines(tmp_path / "out.jsonl")
    assert [row["path"].rpartition("/")[2] for row in found][:2] == ["0.wav", "1.wav"]
    for number in range(4):
        assert found[number]["response"] == await text_of(ears, recording(0.5, number))
        assert found[number]["language"] == "en"
        assert found[number]["duration"] == pytest.approx(0.5)
    assert "not usable" in found[4]["error"]["message"]
    again = await penstock.arun(folder, tmp_path / "out.jsonl", **asked)
    assert again.already_complete


async def test_lines_of_a_batch(ears, tmp_path):
    def line(name, way="transcriptions", **body):
        url = f"/v1/audio/{way}"
        return {"custom_id": name, "method": "POST", "url": url, "body": {"model": "m", **body}}

    audio = recording(0.5)
    uri = f"data:audio/wav;base64,{b64encode(audio).decode()}"
    asked = {"file_url": uri, "max_tokens": 8}
    verbose = {"response_format": "verbose_json", "language": "en"}
    given = [
        line("plain", **asked, language="en"),
        line("timed", **asked, **verbose),
        line("english", "translations", **asked, **verbose),
        line("capitals", file_url=uri.replace("data:", "DATA:"), max_tokens=8),
        line("elsewhere", file_url="https://example.org/a.wav"),
        line("no base64", file_url="data:audio/wav;base64,RIF~"),
        line("empty", file_url="data:audio/wav;base64,"),
        line("upload", file="a.wav"),
        line("subtitles", **asked, response_format="srt"),
        line("stream", **asked, stream=True),
        line("no sound", file_url="data:audio/wav;base64,AAAA"),
    ]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in given))
    result = await penstock.arun(tmp_path / "in.jsonl", tmp_path / "out.jsonl", engine=ears)
    assert (result.counts.ok, result.counts.rows) == (4, 11)
    found = {row["custom_id"]: row["response"] for row in lines(tmp_path / "out.jsonl")}
    text = await text_of(ears, audio)
    assert found["plain"]["body"] == {"text": text}
    timed = found["timed"]["body"]
    assert (timed["task"], timed["language"], timed["duration"]) == ("transcribe", "en", 0.5)
    assert timed["segments"]
    assert found["english"]["body"]["task"] == "translate"
    assert found["capitals"]["status_code"] == 200
    wrong = {name: one for name, one in found.items() if one["status_code"] != 200}
    assert {one["status_code"] for one in wrong.values()} == {400}
    assert [one["body"]["error"]["param"] for one in wrong.values()] == [
        *("file_url", "file_url", "file_url", "file", "response_format", "stream"),
        wrong["no sound"]["body"]["error"]["param"],
    ]


async def test_hugging_faces_columns_in_parquet_with_times(ears, tmp_path):
    sounds = [{"bytes": recording(0.5, number % 2), "path": None} for number in range(4)]
    table = pa.table({"id": range(5), "sound": [*sounds, None]})
    pq.write_table(table, tmp_path / "in.parquet")
    result = await penstock.arun(
        tmp_path / "in.parquet",
        tmp_path / "out.parquet",
        engine=ears,
        audio="sound",
        timestamps=True,
        max_tokens=8,
    )
    assert (result.counts.ok, result.counts.rows) == (4, 5)
    out = pq.read_table(tmp_path / "out.parquet")
    assert out["sound"].to_pylist()[:4] == sounds
    assert out["response"][0] == out["response"][2]
    assert out["segments"].type.value_type.names == ["start", "end", "text"]
    assert out["status"].to_pylist() == ["ok"] * 4 + ["error"]
    assert "no recording in 'sound'" in out["error"][4].as_py()["message"]


async def test_equal_recordings_are_heard_once(ears, monkeypatch):
    heard = []
    answer = OpenVINOEngine.answer

    async def counted(self, task, request):
        heard.append(task)
        return await answer(self, task, request)

    monkeypatch.setattr(OpenVINOEngine, "answer", counted)
    rows = [{"a": recording(0.3)} for _ in range(5)]
    result = await penstock.arun(rows, engine=ears, audio="a", max_tokens=4)
    assert result.counts.ok == 5
    assert heard == ["transcriptions"]


async def test_recordings_are_answered_from_a_cache(ears, tmp_path):
    asked = {"engine": ears, "audio": "a", "max_tokens": 4, "cache": tmp_path / "cache"}
    first = await penstock.arun([{"a": recording(0.3)}], **asked)
    again = await penstock.arun([{"a": recording(0.3)}, {"a": recording(0.4)}], **asked)
    assert (first.counts.from_cache, again.counts.from_cache) == (0, 1)
    assert next(again.rows())["duration"] == next(first.rows())["duration"]


async def test_a_processor_hears(ears):
    config = OpenVINOEngineProcessorConfig(
        model_source=ears.model_source, engine_kwargs=OPTIONS, task_type="transcribe"
    )
    row = {"audio": recording(0.5), "language": "en", "sampling_params": {"max_tokens": 8}}
    (found,) = [one async for one in build_processor(config)([row])]
    assert found["generated_text"] == await text_of(ears, recording(0.5))
    assert (found["language"], found["duration"]) == ("en", 0.5)


async def test_a_processor_speaks(mouth):
    config = OpenVINOEngineProcessorConfig(
        model_source=mouth.model_source, engine_kwargs=OPTIONS, task_type="speak"
    )
    (found,) = [one async for one in build_processor(config)([{"prompt": "a fox"}])]
    assert len(read_recording(found["audio"], 60)) / 16_000 == found["duration"]


async def test_texts_become_files(mouth, tmp_path):
    rows = [{"line": "a fox"}, {"line": "the lazy dog"}, {"line": "a fox"}, {"line": " "}]
    asked = {"engine": mouth, "speak": "line", "audio_dir": tmp_path / "spoken"}
    result = await penstock.arun(rows, tmp_path / "out.jsonl", **asked)
    assert result.counts.ok == 3
    found = lines(tmp_path / "out.jsonl")
    assert found[0]["audio"] == found[2]["audio"] != found[1]["audio"]
    contents = {str(file): file.read_bytes() for file in (tmp_path / "spoken").iterdir()}
    assert contents.keys() == {row["audio"] for row in found[:3]}
    speech = await mouth.speech(SpeechRequest("a fox"))
    samples = read_recording(contents[found[0]["audio"]], 60)
    assert len(samples) == len(speech.pcm) // 2 == found[0]["duration"] * speech.rate
    assert "no text" in found[3]["error"]["message"]


async def test_other_forms_of_files(mouth, tmp_path):
    pytest.importorskip("av")
    await penstock.arun(
        [{"line": "a fox"}],
        tmp_path / "out.csv",
        engine=mouth,
        speak="{line} jumps",
        audio_dir=tmp_path,
        audio_format="opus",
    )
    (file,) = tmp_path.glob("*.opus")
    assert len(read_recording(file.read_bytes(), 60))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"audio": "nothing"}, "audio"),
        ({"audio": "text", "prompt": "{text}"}, "prompt"),
        ({"audio": "text", "temperature": 0.5}, "temperature"),
        ({"audio": "text", "voice": "deep"}, "voice"),
        ({"prompt": "{text}", "hotwords": "fox"}, "hotwords"),
        ({"speak": "text"}, "audio_dir"),
        ({"speak": "text", "audio_dir": "x", "audio_format": "wma"}, "audio_format"),
        ({"speak": "nothing", "audio_dir": "x"}, "speak"),
    ],
)
async def test_what_has_no_meaning_is_refused(ears, options, field):
    with pytest.raises(ConfigError) as caught:
        await penstock.arun([{"text": "x"}], engine=ears, **options)
    assert caught.value.field == field


async def test_a_model_of_another_kind_is_refused(ears, mouth):
    with pytest.raises(UnsupportedError, match="give a speech-to-text model"):
        await penstock.arun([{"a": recording(0.3)}], engine=mouth, audio="a")
    with pytest.raises(UnsupportedError, match="give a text-to-speech model"):
        await penstock.arun([{"a": "fox"}], engine=ears, speak="a", audio_dir="x")
