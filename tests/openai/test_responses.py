from penstock.openai.responses import subtitles, verbose_transcription
from penstock.types import Transcription, TranscriptionSegment

SEGMENTS = (
    TranscriptionSegment(0.0, 1.5, "One --> two"),
    TranscriptionSegment(3661.0404, 3662.9996, " three\n\nfour "),
)


def test_subrip():
    assert (
        subtitles(SEGMENTS, "srt")
        == "1\n00:00:00,000 --> 00:00:01,500\nOne -> two\n\n2\n01:01:01,040 -->"
        " 01:01:03,000\nthree\nfour\n"
    )


def test_webvtt():
    assert subtitles(SEGMENTS, "vtt").startswith(
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nOne -> two\n\n01:01:01.040"
    )
    assert subtitles((), "vtt") == "WEBVTT\n\n"


def test_verbose_json_tells_what_is_known():
    body = verbose_transcription(Transcription("text", language="de", duration=9.0), SEGMENTS)
    assert (body["text"], body["language"], body["duration"]) == ("text", "de", 9.0)
    assert body["segments"][0] == {"id": 0, "start": 0.0, "end": 1.5, "text": "One --> two"}
    assert verbose_transcription(Transcription("text"), SEGMENTS)["duration"] == SEGMENTS[1].end
