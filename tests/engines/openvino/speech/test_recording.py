"""Recordings of many forms, read to the same samples."""

import contextlib
import io
import struct

import numpy as np
import pytest

from penstock.engines.media.audio import audio_file
from penstock.engines.openvino.speech import SAMPLE_RATE, read_recording, windows
from penstock.errors import MissingExtraError, RequestError
from penstock.types import Speech
from speech_models import tone, wav

TONE = tone(440, seconds=1)


def read(audio, most=60):
    return read_recording(audio, most)


def encoded(form, rate=24_000):
    return audio_file(Speech(tone(440, rate, 1).astype("<i2").tobytes(), rate), form)


def container(form, codec):
    """The tone in a container that speech is not written in."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=form) as out:
        stream = out.add_stream(codec, rate=48_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(
            tone(440, 48_000, 1).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = 48_000
        resampler = av.AudioResampler(
            format=stream.format, layout="mono", rate=48_000, frame_size=stream.frame_size
        )
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()


def sounds_like_the_tone(samples):
    spectrum = np.abs(np.fft.rfft(samples))
    loudest = np.argmax(spectrum) * SAMPLE_RATE / len(samples)
    return abs(loudest - 440) < 3 and len(samples) == pytest.approx(SAMPLE_RATE, rel=0.1)


def test_samples_are_scaled():
    samples = read(wav([0, 16384, -32768] + [0] * 2000))
    assert samples.dtype == np.float32
    assert samples[:3].tolist() == [0, 0.5, -1]


@pytest.mark.parametrize(
    ("width", "scale", "zero"), [(1, 1 / 256, 128), (3, 256, 0), (4, 65536, 0)]
)
def test_other_widths_give_the_same_sound(width, scale, zero):
    made = np.round(TONE * scale) + zero
    assert read(wav(made, width=width)) == pytest.approx(read(wav(TONE)), abs=6e-3)


def test_channels_are_mixed():
    both = np.column_stack([TONE, np.zeros(len(TONE))])
    assert read(wav(both, channels=2)) == pytest.approx(read(wav(TONE / 2)), abs=1e-4)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_give_the_same_sound(rate):
    samples = read(wav(tone(440, rate, 1), rate))
    middle = slice(800, -800)
    assert samples[middle] == pytest.approx(read(wav(TONE))[middle], abs=5e-3)


def test_long_recordings_are_resampled_in_blocks_without_seams():
    samples = read(wav(tone(440, 44_100, 25), 44_100))
    middle = slice(800, -800)
    assert samples[middle] == pytest.approx(read(wav(tone(440, seconds=25)))[middle], abs=5e-3)


def test_what_the_lower_rate_cannot_carry_is_gone():
    assert np.abs(read(wav(tone(15_000, 48_000), 48_000))[800:-800]).max() < 5e-3


def test_a_click_is_padded_with_silence():
    assert len(read(wav([1]))) == SAMPLE_RATE // 10


@pytest.mark.parametrize("form", ["mp3", "opus", "flac", "aac"])
def test_compressed_forms(form):
    pytest.importorskip("av")
    assert sounds_like_the_tone(read(encoded(form)))


@pytest.mark.parametrize(
    ("form", "codec"),
    [
        ("mp4", "aac"),
        ("webm", "libopus"),
        ("wav", "pcm_f32le"),
        ("aiff", "pcm_s16be"),
    ],
)
def test_other_containers(form, codec):
    assert sounds_like_the_tone(read(container(form, codec)))


def test_a_form_without_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"penstock\[audio\]"):
        read(b"ID3" + bytes(100))


@pytest.mark.parametrize(
    ("audio", "why"),
    [
        (b"", "it is empty"),
        (b"#EXTM3U\nfile:///etc/passwd", "none of wav, mp3"),
        (b"<html>", "none of wav, mp3"),
        (wav([]), "no samples"),
        (wav([1] * 50)[:30], "ends too early|fmt chunk|data chunk"),
        (wav([1] * 500, rate=3), "3 samples a second"),
    ],
)
def test_what_is_no_recording_is_refused(audio, why):
    with pytest.raises(RequestError, match=f"the audio is not usable: .*({why})") as caught:
        read(audio)
    assert caught.value.param == "file"


@pytest.mark.parametrize("form", ["mp3", "opus", "flac"])
@pytest.mark.parametrize("seed", range(6))
def test_damaged_files_are_refused_or_heard_in_part(form, seed):
    pytest.importorskip("av")
    chance = np.random.default_rng(seed)
    data = bytearray(encoded(form))
    for at in chance.integers(4, len(data), 40):
        data[at] = int(chance.integers(256))
    cut = bytes(data[: int(chance.integers(40, len(data)))])
    with contextlib.suppress(RequestError):
        assert len(read(cut)) <= 61 * SAMPLE_RATE


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_a_bomb_of_silence_is_refused_before_it_is_decoded(form):
    if form == "flac":
        pytest.importorskip("av")
    hour = audio_file(Speech(bytes(2 * 3600 * 8000), 8000), form)
    with pytest.raises(RequestError, match="longer than the 60 s of max_audio_seconds"):
        read(hour)


@pytest.mark.parametrize("promised", [0xFFFFFFF0, 0xFFFFFFFF])  # a pipe does not know the length
def test_a_header_that_promises_too_much_is_no_bomb(promised):
    lying = bytearray(wav(TONE))
    lying[40:44] = struct.pack("<I", promised)
    assert np.array_equal(read(bytes(lying), 2), read(wav(TONE)))


class TestWindows:
    def test_a_short_recording_is_one(self):
        assert windows(np.ones(30 * SAMPLE_RATE, np.float32)) == [(0, 30 * SAMPLE_RATE)]

    def test_long_ones_are_cut_where_it_is_quiet(self):
        samples = np.ones(70 * SAMPLE_RATE, np.float32)
        for second in (27, 55):
            samples[second * SAMPLE_RATE : second * SAMPLE_RATE + 1600] = 0
        found = windows(samples)
        assert [end / SAMPLE_RATE for _, end in found[:-1]] == pytest.approx([27, 55], abs=0.11)
        assert [start for start, _ in found[1:]] == [end for _, end in found[:-1]]
        assert found[-1][1] == len(samples)

    def test_silence_is_cut_as_late_as_may_be(self):
        found = windows(np.zeros(61 * SAMPLE_RATE, np.float32))
        assert len(found) == 3
        assert all(end - start <= 30 * SAMPLE_RATE for start, end in found)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
def test_samples_that_no_model_can_hear_are_refused(value):
    pytest.importorskip("av")
    samples = np.full(SAMPLE_RATE, value, "<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, SAMPLE_RATE, 4 * SAMPLE_RATE, 4, 32)
    head = b"WAVEfmt \x10\0\0\0" + form + b"data" + struct.pack("<I", len(samples))
    with pytest.raises(RequestError, match="no numbers, or too large"):
        read(b"RIFF" + struct.pack("<I", len(head + samples)) + head + samples)
