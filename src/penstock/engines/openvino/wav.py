"""Reads WAV files for speech models."""

from __future__ import annotations

import io
import wave

import numpy as np
from numpy.typing import NDArray

from penstock.errors import RequestError

SAMPLE_RATE = 16_000
_SHORTEST_SAMPLES = SAMPLE_RATE // 10


def read_wav(audio: bytes) -> NDArray[np.float32]:
    """A WAV file as samples from -1 to 1: its channels mixed, at 16 kHz. Raises `RequestError` for
    any other format.
    """
    try:
        with wave.open(io.BytesIO(audio)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise _bad_audio(str(error) or "it ends too early") from None
    if width != 2:
        raise _bad_audio(f"it has {8 * width}-bit samples")
    # A recording may have been cut off in the middle of a frame.
    whole = len(frames) // (2 * channels) * channels
    if not whole:
        raise _bad_audio("it has no samples")
    samples = np.frombuffer(frames, "<i2", whole).reshape(-1, channels).mean(axis=1) / 32768
    samples = _resampled(samples, rate)
    return np.pad(samples, (0, max(_SHORTEST_SAMPLES - len(samples), 0))).astype(np.float32)


def _bad_audio(why: str) -> RequestError:
    return RequestError(
        f"the audio is not usable ({why}): send a WAV file with 16-bit PCM samples", param="file"
    )


def _resampled(samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """At 16 kHz, by way of the spectrum: what 16 kHz cannot carry is cut off, and does not come
    back as noise.
    """
    if rate == SAMPLE_RATE:
        return samples
    size = max(round(len(samples) * SAMPLE_RATE / rate), 1)
    return np.fft.irfft(np.fft.rfft(samples), size) * (size / len(samples))
