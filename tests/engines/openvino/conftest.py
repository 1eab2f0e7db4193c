"""Writes random answers by a grammar, as the engine would, without a model."""

import openvino_genai as genai
import pytest

from penstock.demo import MODEL_NAME
from penstock.engines.openvino.constraints.grammar_cache import BarePipeline
from penstock.engines.openvino.model.source import find_model


class Writer:
    """Texts of random tokens that a grammar allows. `None` for one that did not come to its end."""

    def __init__(self):
        self._tokenizer = genai.Tokenizer(str(find_model(MODEL_NAME, None, None).path))
        self.vocabulary = max(self._tokenizer.get_vocab().values()) + 1
        self._pipeline = BarePipeline(self._tokenizer, self.vocabulary)

    def texts(self, grammar, count=8, tokens=200):
        """Different ones that came to their end."""
        found = set()
        for seed in range(count):
            ids = self._pipeline.compile(grammar, tokens, seed)
            if ids[-1] != self._tokenizer.get_eos_token_id():
                continue
            text = self._tokenizer.decode(ids)
            # The engine takes special tokens for their names, which are no part of the text that is
            # read.
            if text == self._tokenizer.decode(ids[:-1], skip_special_tokens=False):
                found.add(text)
        return sorted(found)


@pytest.fixture(scope="session")
def writer():
    return Writer()
