import io
import wave

import numpy as np
import pytest

from penstock.engines.openvino.wav import SAMPLE_RATE, read_wav
from penstock.errors import RequestError


def wav(samples, rate=16_000, channels=1, width=2):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(np.asarray(samples).astype(f"<i{width}").tobytes())
    return file.getvalue()


def tone(hertz, rate, seconds=0.5):
    return 8192 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def test_samples_are_scaled():
    samples = read_wav(wav([0, 16384, -32768] + [0] * 2000))
    assert samples.dtype == np.float32
    assert samples[:3].tolist() == [0, 0.5, -1]


def test_channels_are_mixed():
    both = np.column_stack([tone(440, 16_000), np.zeros(8000)])
    assert read_wav(wav(both, channels=2)) == pytest.approx(
        read_wav(wav(tone(440, 16_000) / 2)), abs=1e-4
    )


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_give_the_same_sound(rate):
    samples = read_wav(wav(tone(440, rate), rate))
    middle = slice(800, -800)
    assert samples[middle] == pytest.approx(read_wav(wav(tone(440, 16_000)))[middle], abs=5e-3)


def test_what_the_lower_rate_cannot_carry_is_gone():
    assert np.abs(read_wav(wav(tone(15_000, 48_000), 48_000))[800:-800]).max() < 5e-3


def test_a_click_is_padded_with_silence():
    assert len(read_wav(wav([1]))) == SAMPLE_RATE // 10


@pytest.mark.parametrize(
    ("audio", "why"),
    [
        (b"", "ends too early"),
        (b"ID3 this is no WAV file, but music", "RIFF"),
        (wav([]), "no samples"),
        (wav([1, 2, 3], width=4), "32-bit"),
    ],
)
def test_other_formats_are_refused(audio, why):
    with pytest.raises(RequestError, match=f"{why}.*send a WAV file with 16-bit PCM"):
        read_wav(audio)
