"""Text-to-speech, inside the worker process: SpeechT5 with its vocoder."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai

from penstock.engines.openvino.model.files import MODEL_KINDS
from penstock.engines.openvino.tasks import Task
from penstock.errors import EngineStartError, RequestError, UnsupportedError, nearest
from penstock.types import Speech, Usage

DEFAULT_VOICE = "default"


class Speaking(Task):
    """A model that speaks a text."""

    kind = MODEL_KINDS["speak"]

    def _start(self) -> None:
        self._pipeline = genai.Text2SpeechPipeline(
            self._path, self._options.device, **self._properties
        )
        shape = tuple(self._pipeline.get_speaker_embedding_shape())
        self._voices: dict[str, ov.Tensor] = {}
        for name, file in self._options.voices.items():
            try:
                numbers = np.fromfile(Path(file), np.float32)
            except OSError as error:
                raise EngineStartError(
                    f"the voice '{name}' cannot be read from '{file}': {error.strerror}"
                ) from None
            if numbers.size != math.prod(shape) or not np.isfinite(numbers).all():
                raise EngineStartError(
                    f"the voice '{name}' in '{file}' must be {math.prod(shape)} 32-bit floats"
                )
            self._voices[name] = ov.Tensor(numbers.reshape(shape))

    def speak(self, text: str, voice: str | None, speed: float) -> Speech:
        """The text, spoken. Raises `RequestError` for an unknown voice and a text that is empty or
        too long.
        """
        known = [DEFAULT_VOICE, *self._voices]
        if voice is not None and voice not in known:
            raise RequestError(
                f"this model has no voice '{voice[:50]}'; it has {', '.join(known)}."
                f" {nearest(voice[:50], known)}",
                param="voice",
            )
        if speed != 1:
            raise UnsupportedError("this model speaks at speed 1 only", param="speed")
        if not text.strip():
            raise RequestError("there is no text to speak", param="input")
        tokens = len(self.encoded(text, special_tokens=True, names=False).ids)
        self._check_lengths([tokens], "input")
        with_voice = (self._voices[voice],) if voice in self._voices else ()
        result = self._pipeline.generate(text, *with_voice)
        samples = np.asarray(result.speeches[0].data, np.float32).reshape(-1)
        pcm = (np.clip(np.nan_to_num(samples), -1, 1) * 32767).astype("<i2").tobytes()
        return Speech(pcm, int(result.output_sample_rate), Usage(tokens, 0))
