"""A converted tokenizer is tried out: it must split texts as the model's own does."""

import json
import shutil

import pytest

from penstock.demo import model_path
from penstock.engines.openvino.model import source, tokenizer_trial


@pytest.mark.parametrize("differing", [[], ["a\nb", "c"]])
def test_what_differs_is_said(monkeypatch, tmp_path, capfd, differing):
    def run(name, arguments, log, stage):
        lines = [f"{tokenizer_trial.DIFFERS}{text!r}\n" for text in differing]
        log.write_text("".join(["some library's warning\n", *lines]))

    monkeypatch.setattr(source, "run_python", run)
    source._try_tokenizer("m", tmp_path, tmp_path / "log", lambda stage: None)
    told = capfd.readouterr().err
    if not differing:
        assert told == ""
        return
    assert told.startswith("m: the converted tokenizer splits 2 of 18 texts otherwise than")
    assert r"such as 'a\nb':" in told


@pytest.mark.convert
@pytest.mark.filterwarnings("default")
def test_the_demo_models_tokenizer_is_converted_rightly(tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(model_path("openvino"), folder)
    file = folder / "tokenizer.json"
    shutil.copy(model_path("huggingface") / file.name, file)
    tokenizer_trial.main(folder)
    assert capsys.readouterr().out == ""
    content = json.loads(file.read_text())
    content["model"]["merges"] = [
        merge for merge in content["model"]["merges"] if "o" not in "".join(merge)
    ]
    file.write_text(json.dumps(content))
    assert tokenizer_trial.TEXTS[0] in tokenizer_trial.differing(folder)
    file.unlink()
    assert tokenizer_trial.differing(folder) == []
