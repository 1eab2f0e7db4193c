"""Conversion, with an exporter that only pretends: cache, lock, progress and errors."""

import errno
import fcntl
import json
import os
import sys
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from penstock.engines.openvino.model import source as module
from penstock.engines.openvino.model.source import convert, find_model, lack_of
from penstock.engines.openvino.model.weights import Quantization
from penstock.errors import EngineStartError, MissingExtraError

EXPORTER = """
import json, os, sys
from pathlib import Path
arguments = sys.argv[1:]
with open(os.environ["EXPORTS"], "a") as file:
    file.write(json.dumps(arguments) + "\\n")
print("Loading weights:   0%|          | 0/9\\rLoading weights: 100%|####| 9/9")
print(os.environ.get("REPORT", ""))
if failure := os.environ.get("FAILURE"):
    sys.exit(failure)
out = Path(arguments[-1])
for name in os.environ.get("WRITES", "openvino_model.xml openvino_tokenizer.xml").split():
    (out / name).write_text("<net/>")
if tokenizer := os.environ.get("TOKENIZER"):
    (out / "tokenizer.json").write_text(tokenizer)
model = Path(arguments[arguments.index("--model") + 1])
(out / "config.json").write_bytes((model / "config.json").read_bytes())
"""

REPORT = """LlamaForCausalLM LOAD REPORT from: /models/llama
Key                        | Status     |  |
---------------------------+------------+--+-
lm_head.bias               | UNEXPECTED |  |
model.layers.{0, 1}.mlp.weight | MISSING |
model.norm.weight          | MISMATCH   | Reinit due to size mismatch
a.weight                   | MISSING    |
b.weight                   | MISSING    |
"""


@pytest.mark.parametrize("stated", [{"max_position_embeddings": 4096}, {}])
def test_more_tokens_than_the_positions_that_a_model_states_are_refused(tmp_path, stated):
    for name in ("openvino_model.xml", "openvino_tokenizer.xml"):
        (tmp_path / name).write_text("<net/>")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"], **stated}))
    if stated:
        with pytest.raises(EngineStartError, match=r"5000 is more than .*; give at most 4096"):
            find_model(str(tmp_path), "embed", 5000)
    assert find_model(str(tmp_path), "embed", None).context_length == 4096
    most = 4096 if stated else 5000
    assert find_model(str(tmp_path), "embed", most).context_length == most


def test_more_tokens_than_the_short_factors_are_for_are_refused(tmp_path):
    for name in ("openvino_model.xml", "openvino_tokenizer.xml"):
        (tmp_path / name).write_text("<net/>")
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    config = {"max_position_embeddings": 131072, "rope_parameters": rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineStartError, match=r"max_model_len 8192: .*; give at most 4096"):
        find_model(str(tmp_path), None, 8192)
    assert find_model(str(tmp_path), None, None).context_length == 4096


@pytest.fixture
def exports(tmp_path, monkeypatch):
    """A function that lists the exporter's command lines so far; the exporter is a pretended one,
    the cache is new.
    """
    packages, log = tmp_path / "packages", tmp_path / "exports"
    commands = packages / "optimum" / "commands"
    commands.mkdir(parents=True)
    (packages / "optimum" / "__init__.py").touch()
    (commands / "__init__.py").touch()
    (commands / "optimum_cli.py").write_text(EXPORTER)
    log.touch()
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setenv("EXPORTS", str(log))
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    monkeypatch.setattr(module, "_try_out", lambda *_: None)
    monkeypatch.setattr(module, "_try_tokenizer", lambda *_: None)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


def no_extra(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)


def hf_model(path, architecture="LlamaForCausalLM", **config):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"architectures": [architecture], **config}))
    (path / "model.safetensors").write_bytes(b"weights")
    return str(path)


def left_in(directory):
    return sorted(path.name for path in directory.iterdir())


class TestCache:
    def test_a_model_is_converted_once(self, exports, tmp_path):
        source = hf_model(tmp_path / "llama")
        first = convert(source)
        assert convert(source) == first
        assert first.parent == tmp_path / "cache" / "converted"
        assert first.name.startswith("llama-")
        assert len(exports()) == 1
        assert left_in(first.parent) == [first.name, f"{first.name}.lock"]

    def test_the_converted_model_needs_no_extra(self, exports, tmp_path, monkeypatch):
        source = hf_model(tmp_path / "llama")
        first = convert(source)
        no_extra(monkeypatch)
        assert convert(source) == first

    def test_a_changed_directory_is_converted_anew(self, exports, tmp_path):
        source = hf_model(tmp_path / "llama")
        first = convert(source)
        os.utime(tmp_path / "llama" / "model.safetensors", ns=(1, 1))
        second = convert(source)
        (tmp_path / "llama" / "tokenizer.json").touch()
        assert len({first, second, convert(source)}) == len(exports()) == 3

    def test_so_is_another_weight_format(self, exports, tmp_path):
        source = hf_model(tmp_path / "llama")
        first = convert(source)
        assert convert(source, weight_format="auto") == first
        int4 = convert(source, weight_format="int4")
        awq = convert(source, weight_format="int4", quantization=Quantization(awq=True))
        assert len({first, int4, awq}) == 3
        assert exports()[2][-4:-1] == ["--weight-format", "int4", "--awq"]

    def test_a_converted_model_has_its_format(self, exports, tmp_path):
        first = convert(hf_model(tmp_path / "llama"))
        with pytest.raises(EngineStartError, match="weight_format 'int8' has no meaning"):
            find_model(str(first), None, None, "int8")

    def test_directories_of_one_name_are_told_apart(self, exports, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        assert convert(hf_model(tmp_path / "a" / "llama")) != convert(
            hf_model(tmp_path / "b" / "llama")
        )

    def test_parts_of_sentence_transformers_are_kept_and_known(self, exports, tmp_path):
        source = hf_model(tmp_path / "gemma")
        part = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}
        (tmp_path / "gemma/modules.json").write_text(json.dumps([part]))
        folder = tmp_path / "gemma/2_Dense"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"layer")
        first = convert(source)
        assert left_in(first / "2_Dense") == ["config.json", "model.safetensors"]
        os.utime(folder / "model.safetensors", ns=(1, 1))
        assert convert(source) != first

    def test_what_a_killed_process_left_is_cleared_away(self, exports, tmp_path):
        source = hf_model(tmp_path / "llama")
        target = convert(source)
        target.rename(target.with_name(f"{target.name}.partial-old"))
        assert convert(source) == target
        assert left_in(target.parent) == [target.name, f"{target.name}.lock"]

    def test_a_cache_that_cannot_be_written(self, exports, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "file"))
        with pytest.raises(
            EngineStartError, match=f"could not be converted: .*{os.strerror(errno.ENOTDIR)}"
        ):
            convert(hf_model(tmp_path / "llama"))


def test_two_processes_do_not_convert_the_same_model(exports, tmp_path):
    source = hf_model(tmp_path / "llama")
    target = convert(source)
    hidden = target.rename(tmp_path / "hidden")
    found = []
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(target=lambda: found.append(convert(source)))
        other.start()
        other.join(0.05)
        assert other.is_alive()
        hidden.rename(target)
    other.join()
    assert found == [target]
    assert len(exports()) == 1


class TestExporter:
    @pytest.mark.parametrize(
        ("architecture", "task"),
        [
            ("LlamaForCausalLM", "text-generation-with-past"),
            ("BertModel", "feature-extraction"),
            ("BertForSequenceClassification", "text-classification"),
            ("WhisperForConditionalGeneration", "automatic-speech-recognition-with-past"),
        ],
    )
    def test_the_task_follows_from_the_architecture(self, exports, tmp_path, architecture, task):
        source = hf_model(tmp_path / "model", architecture)
        convert(source)
        command = " ".join(exports()[0])
        assert command.startswith(
            f"export openvino --library transformers --model {source} --task {task}"
        )
        precision = "fp32" if task in ("feature-extraction", "text-classification") else "fp16"
        assert f"--weight-format {precision}" in command

    def test_the_option_decides(self, exports, tmp_path):
        source = hf_model(tmp_path / "model")
        assert find_model(source, "embed", None).path != find_model(source, None, None).path
        assert ["feature-extraction" in command for command in exports()] == [True, False]

    def test_an_embedding_model_is_still_known_as_one_afterwards(self, exports, tmp_path):
        source = hf_model(tmp_path / "model", "Qwen3ForCausalLM")
        (tmp_path / "model" / "modules.json").write_text("[]")
        assert find_model(source, None, None).task == "embed"
        assert find_model(str(convert(source)), None, None).task == "embed"

    def test_a_failure_gives_the_reason_and_keeps_the_log(self, exports, tmp_path, monkeypatch):
        source = hf_model(tmp_path / "llama")
        traceback = 'Traceback:\n  File "x"\nValueError: no such architecture\nsome farewell'
        monkeypatch.setenv("FAILURE", traceback)
        with pytest.raises(
            EngineStartError, match="could not be converted: ValueError: no such architecture"
        ) as caught:
            convert(source)
        logs = list((tmp_path / "cache" / "converted").glob("*.log"))
        assert str(logs[0]) in str(caught.value)
        assert traceback in logs[0].read_text()
        assert not list(logs[0].parent.glob("*.partial-*"))
        monkeypatch.delenv("FAILURE")
        convert(source)
        assert not logs[0].exists()

    def test_a_transformers_that_is_too_new(self, exports, tmp_path, monkeypatch):
        why = "ValueError: The current version of Transformers does not allow for the export of"
        monkeypatch.setenv("FAILURE", f"{why} the model. Maximum required is 5.0, got: 5.5.4")
        with pytest.raises(EngineStartError, match=r"got: 5.5.4; .* pip install 'transf.*<=5.0'"):
            convert(hf_model(tmp_path / "gemma"))

    def test_a_failure_without_an_error_gives_the_last_line(self, exports, tmp_path, monkeypatch):
        monkeypatch.setenv("FAILURE", "invalid choice: 'openvino'\n")
        with pytest.raises(EngineStartError, match="converted: invalid choice: 'openvino' "):
            convert(hf_model(tmp_path / "llama"))

    @pytest.mark.parametrize("fails", [False, True])
    def test_weights_that_are_not_there_are_refused(self, exports, tmp_path, monkeypatch, fails):
        """The exporter goes on with random numbers, and reports them."""
        monkeypatch.setenv("REPORT", REPORT)
        if fails:
            monkeypatch.setenv("FAILURE", "RuntimeError: For details look at the above report!")
        names = r"model.layers.\{0, 1\}.mlp.weight, model.norm.weight, a.weight, …"
        with pytest.raises(EngineStartError, match=f"for {names}.*log: ") as caught:
            convert(hf_model(tmp_path / "llama"))
        assert "RuntimeError" not in str(caught.value)
        assert not list((tmp_path / "cache").glob("converted/llama-*/*.xml"))

    def test_vectors_of_tokens_need_no_pooler(self, exports, tmp_path, monkeypatch):
        monkeypatch.setenv("REPORT", "pooler.dense.weight | MISSING | \n")
        convert(hf_model(tmp_path / "bert", "BertModel"))
        with pytest.raises(EngineStartError, match=r"for pooler\.dense\.weight: fetch"):
            convert(hf_model(tmp_path / "cross", "BertForSequenceClassification"))

    @pytest.mark.parametrize(
        ("architecture", "config", "kind"),
        [
            ("T5EncoderModel", {"model_type": "t5"}, "encoder-decoder"),
            ("LlamaForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2}}, "dynamic"),
        ],
    )
    def test_what_the_exporter_makes_another_model_of(
        self, exports, tmp_path, architecture, config, kind
    ):
        with pytest.raises(EngineStartError, match=f"no support for {kind}"):
            convert(hf_model(tmp_path / "model", architecture, **config))
        assert exports() == []

    def test_a_model_without_a_tokenizer(self, exports, tmp_path, monkeypatch):
        monkeypatch.setenv("WRITES", "openvino_model.xml")
        with pytest.raises(EngineStartError, match="has no tokenizer"):
            convert(hf_model(tmp_path / "llama"))

    def test_a_tokenizer_that_was_made_up(self, exports, tmp_path, monkeypatch):
        """transformers makes one of no words where there are no files of a tokenizer."""
        names = "openvino_model.xml openvino_tokenizer.xml tokenizer.json"
        monkeypatch.setenv("WRITES", names)
        for words, refused in (({"": 0}, True), ({"a": 0, "b": 1}, False)):
            monkeypatch.setenv("TOKENIZER", json.dumps({"model": {"vocab": words}}))
            with pytest.raises(EngineStartError) if refused else nullcontext():
                convert(hf_model(tmp_path / "llama"))

    def test_image_settings_stand_where_the_engine_looks_for_them(self, tmp_path):
        (source := tmp_path / "source").mkdir()
        (target := tmp_path / "target").mkdir()
        settings = {"image_processor": {"do_resize": True}, "video_processor": {"fps": 2}}
        (source / "processor_config.json").write_text(json.dumps(settings))
        module.keep_image_settings(source, target)
        for name, medium in (("preprocessor", "image"), ("video_preprocessor", "video")):
            kept = json.loads((target / f"{name}_config.json").read_text())
            assert kept == settings[f"{medium}_processor"]

    @pytest.mark.parametrize(
        ("architecture", "config", "task", "kind"),
        [
            ("T5ForConditionalGeneration", {"is_encoder_decoder": True}, None, "encoder-decoder"),
            ("Qwen3ForCausalLM", {}, "score", "generative rerank"),
            ("CLIPModel", {"vision_config": {}}, None, "image embedding"),
        ],
    )
    def test_kinds_that_the_engine_cannot_run(
        self, exports, tmp_path, architecture, config, task, kind
    ):
        with pytest.raises(EngineStartError, match=f"no support for {kind} models"):
            convert(hf_model(tmp_path / "model", architecture, **config), task)
        assert exports() == []

    def test_a_classifier_is_no_rerank_model(self, exports, tmp_path):
        config = {"id2label": {"0": "sad", "1": "glad", "2": "neither"}}
        model = hf_model(tmp_path / "model", "BertForSequenceClassification", **config)
        with pytest.raises(EngineStartError, match=r"3 labels \(sad, glad, neither\)"):
            find_model(model, None, None)
        (tmp_path / "model/openvino_model.xml").write_text("<net/>")
        with pytest.raises(EngineStartError, match="no support for classification models"):
            find_model(model, None, None)
        assert exports() == []


class TestSources:
    def test_without_the_extra_the_message_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path))
        no_extra(monkeypatch)
        with pytest.raises(MissingExtraError, match=r"llama'.*pip install 'penstock\[convert\]'"):
            convert(hf_model(tmp_path / "llama"))
        with pytest.raises(
            MissingExtraError,
            match=r"'org/name' \(no such path, .*pip install 'penstock\[convert\]'",
        ):
            convert("org/name")

    @pytest.mark.parametrize(
        "source",
        [
            "nothing",
            "./no/where",
            "/no/where",
            "a/b/c",
            "org/name@",
            "",
            "~no-such-user/here",
            "x" * 300,
        ],
    )
    def test_neither_a_path_nor_a_hub_id(self, source):
        with pytest.raises(
            EngineStartError, match=r"there is no model '.*give 'demo', a directory .* 'org/name'"
        ):
            find_model(source or "no model", None, None)
        assert lack_of(source or "no model", None, None, Quantization()) is None

    def test_a_file(self, tmp_path):
        (tmp_path / "model.safetensors").touch()
        with pytest.raises(EngineStartError, match="give their directory"):
            find_model(str(tmp_path / "model.safetensors"), None, None)

    def test_a_directory_without_a_model(self, tmp_path):
        with pytest.raises(EngineStartError, match=r"lacks config.json, weights"):
            convert(str(tmp_path))
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(EngineStartError, match=r"lacks weights \(\*.safetensors"):
            convert(str(tmp_path))


class TestHub:
    @pytest.fixture
    def asked(self, exports, tmp_path, monkeypatch):
        """What was asked of a pretended hub, which has one model, with old-fashioned weights."""
        asked = []

        def snapshot_download(name, revision, allow_patterns, ignore_patterns):
            asked.append((name, revision, *allow_patterns))
            if name == "org/missing":
                raise RuntimeError("404: no such repository\n(Request ID: 1)")
            hf_model(tmp_path / "snapshot")
            (tmp_path / "snapshot" / "model.safetensors").unlink()
            if name == "org/parts":
                part = [{"type": "sentence_transformers.models.Dense", "path": "2_Dense_1024"}]
                (tmp_path / "snapshot" / "modules.json").write_text(json.dumps(part))
            if "pytorch_model*.bin" in allow_patterns:
                (tmp_path / "snapshot" / "pytorch_model.bin").touch()
            return str(tmp_path / "snapshot")

        hub = SimpleNamespace(snapshot_download=snapshot_download)
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        return asked

    def test_a_model_is_fetched_and_converted_once(self, asked, exports):
        first = convert("org/name")
        assert convert("org/name") == first
        assert first.name.startswith("org--name-")
        # Pooling, model, and again for weights that are no safetensors.
        assert [one[:2] for one in asked] == [("org/name", None)] * 3
        assert len(exports()) == 1

    def test_revisions_are_told_apart(self, asked, exports):
        assert convert("org/name@v1.0") != convert("org/name")
        assert asked[0][:2] == ("org/name", "v1.0")

    def test_the_parts_are_those_that_the_model_lists(self, asked):
        convert("org/parts", "embed")
        listed = [f"2_Dense_1024/*{end}" for end in (".json", ".safetensors")]
        assert asked[1] == ("org/parts", None, *listed)

    def test_what_the_hub_says_is_passed_on(self, asked):
        with pytest.raises(
            EngineStartError, match=r"the hub does not give it: 404: no such repository$"
        ):
            convert("org/missing")


class TestProgress:
    def test_one_line_where_nobody_watches(self, exports, tmp_path, capfd):
        source = hf_model(tmp_path / "llama")
        convert(source)
        convert(source)
        size = "converted {}: 0.0 MB -> 0.0 MB, weights in fp16"
        said = f"converting {source} (once) …\n{size.format(source)}\n"
        assert capfd.readouterr() == ("", said)

    def test_stage_and_time_on_a_terminal(self, exports, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "300")
        convert(hf_model(tmp_path / "llama"))
        out, err = capsys.readouterr()
        assert out == ""
        assert "(once): exporting" in err
        assert "(00:00)" in err
