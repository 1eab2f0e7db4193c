"""A tiny Whisper and a tiny SpeechT5 with random weights, converted already, and recordings.

`tools/make_speech_models.py` made the archives.
"""

from __future__ import annotations

import io
import json
import wave
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

OPTIONS = {"inference_precision": "f32", "num_threads": 1}


def hearing_model(folder: Path, *, letters: bool = False) -> str:
    """The directory of the Whisper, made in `folder`. It says random bytes; with `letters`, letters
    and spaces only: GenAI dies of the times of words that are no whole characters.
    """
    path = Path(_unpacked("whisper_model.zip", folder / "whisper"))
    if letters:
        words = json.loads((path / "tokenizer.json").read_bytes())["model"]["vocab"]
        settings = json.loads((path / "generation_config.json").read_bytes())
        settings["suppress_tokens"] += [
            number
            for text, number in words.items()
            if not (plain := text.replace("\u0120", "")).isascii() or not (plain or "a").isalpha()
        ]
        (path / "generation_config.json").write_text(json.dumps(settings))
    return str(path)


def speaking_model(folder: Path) -> str:
    """The directory of the SpeechT5, made in `folder`: noise, the longer the longer its text."""
    return _unpacked("speech_model.zip", folder / "speaker")


def _unpacked(name: str, path: Path) -> str:
    with zipfile.ZipFile(Path(__file__).with_name(name)) as archive:
        archive.extractall(path)
    return str(path)


def wav(samples: ArrayLike, rate: int = 16_000, channels: int = 1, width: int = 2) -> bytes:
    """A WAV file of whole numbers."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        if width == 3:
            wide = np.asarray(samples).astype("<i4").reshape(-1, 1)
            out.writeframes(wide.view(np.uint8)[:, :3].tobytes())
        else:
            kind = "u1" if width == 1 else f"<i{width}"
            out.writeframes(np.asarray(samples).astype(kind).tobytes())
    return file.getvalue()


def tone(hertz: float, rate: int = 16_000, seconds: float = 0.5) -> Any:
    """Samples of a tone, a quarter of the loudest."""
    return 8192 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def recording(seconds: float = 1.0, seed: int = 0) -> bytes:
    """A tone with noise as a WAV file, 16 kHz mono."""
    noise = np.random.default_rng(seed).normal(0, 2000, int(16_000 * seconds))
    return wav(tone(440 + 50 * seed, seconds=seconds)[: len(noise)] + noise)
