"""The files with which GenAI loads a model that sees."""

import openvino_genai as genai

from penstock.engines.openvino.model.vision_files import (
    TOKENIZER,
    linked,
    write_tokenizer_that_adds_none,
)
from word_models import write_tokenizer


def test_the_tokenizer_adds_no_tokens(tmp_path):
    write_tokenizer(tmp_path, token_types=False)

    def ids(folder, special):
        encoded = genai.Tokenizer(str(folder)).encode("good day", add_special_tokens=special)
        return encoded.input_ids.data.tolist()

    plain = ids(tmp_path, False)
    assert ids(tmp_path, True) != plain
    before = (tmp_path / TOKENIZER).read_bytes()
    with linked(tmp_path, {TOKENIZER}) as made:
        write_tokenizer_that_adds_none(tmp_path, made)
        assert ids(made, True) == ids(made, False) == plain
    assert (tmp_path / TOKENIZER).read_bytes() == before
