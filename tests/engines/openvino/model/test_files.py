import json

import pytest

from penstock.engines.disk.sources import stated_vocabulary
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.model.files import (
    FALLBACK_CONTEXT,
    has_window,
    instructions_of,
    lacks_token_types,
    pooling_of,
)
from penstock.engines.openvino.model.source import find_model
from penstock.errors import EngineStartError


def ir(path, config=None):
    """A directory that looks like a converted model."""
    (path / "openvino_model.xml").write_text("<net/>")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return str(path)


class TestTask:
    @pytest.mark.parametrize(
        ("architecture", "task"),
        [
            ("LlamaForCausalLM", "generate"),
            ("Qwen3ForCausalLM", "generate"),
            ("GPT2LMHeadModel", "generate"),
            ("BertModel", "embed"),
            ("XLMRobertaModel", "embed"),
            ("BertForSequenceClassification", "score"),
            ("WhisperForConditionalGeneration", "transcribe"),
        ],
    )
    def test_by_architecture(self, tmp_path, architecture, task):
        assert find_model(ir(tmp_path, {"architectures": [architecture]}), None, None).task == task

    def test_a_language_model_of_sentence_transformers_embeds(self, tmp_path):
        (tmp_path / "modules.json").write_text("[]")
        assert (
            find_model(ir(tmp_path, {"architectures": ["Qwen3ForCausalLM"]}), None, None).task
            == "embed"
        )

    def test_a_cross_encoder_of_sentence_transformers_scores(self, tmp_path):
        (tmp_path / "modules.json").write_text("[]")
        config = {"architectures": ["BertForSequenceClassification"]}
        assert find_model(ir(tmp_path, config), None, None).task == "score"

    @pytest.mark.parametrize("config", [None, {}, {"architectures": None}, []])
    def test_without_a_word_about_it_a_model_generates(self, tmp_path, config):
        assert find_model(ir(tmp_path, config), None, None).task == "generate"

    def test_the_option_decides(self, tmp_path):
        assert (
            find_model(ir(tmp_path, {"architectures": ["LlamaForCausalLM"]}), "embed", None).task
            == "embed"
        )


class TestContextLength:
    @pytest.mark.parametrize(
        ("config", "length"),
        [
            ({"max_position_embeddings": 2048}, 2048),
            ({"n_positions": 1024}, 1024),
            ({"text_config": {"max_position_embeddings": 512}}, 512),
            ({"max_target_positions": 448}, 448),
            ({"model_type": "xlm-roberta", "pad_token_id": 1, "max_position_embeddings": 514}, 512),
            (
                {
                    "max_position_embeddings": 131072,
                    "original_max_position_embeddings": 4096,
                    "rope_scaling": {"type": "su"},
                },
                4096,
            ),
            ({"max_position_embeddings": 8192, "rope_scaling": {"type": "longrope"}}, 8192),
            ({"model_type": "mpnet", "max_position_embeddings": 514}, 512),
            ({"model_type": "esm", "pad_token_id": 3, "max_position_embeddings": 514}, 510),
            ({"model_type": "bert", "pad_token_id": 3, "max_position_embeddings": 512}, 512),
            ({"max_position_embeddings": None}, FALLBACK_CONTEXT),
            ({}, FALLBACK_CONTEXT),
        ],
    )
    def test_by_config(self, tmp_path, config, length):
        assert find_model(ir(tmp_path, config), None, None).context_length == length

    def test_the_option_decides(self, tmp_path):
        assert (
            find_model(ir(tmp_path, {"max_position_embeddings": 2048}), None, 100).context_length
            == 100
        )


def test_a_config_that_is_not_json(tmp_path):
    source = ir(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EngineStartError, match=r"config.json' is not valid JSON"):
        find_model(source, None, None)


@pytest.mark.parametrize(
    ("model", "tokenizer", "lacks"),
    [
        ('names="token_type_ids"', 'names="input_ids"', True),
        ('names="token_type_ids"', 'names="token_type_ids"', False),
        ('names="input_ids"', 'names="input_ids"', False),
    ],
)
def test_token_types(tmp_path, model, tokenizer, lacks):
    (tmp_path / "openvino_model.xml").write_text(model)
    (tmp_path / "openvino_tokenizer.xml").write_text(tokenizer)
    assert lacks_token_types(tmp_path) is lacks


@pytest.mark.parametrize(
    ("config", "windowed"),
    [
        ({}, False),
        ({"sliding_window": None}, False),
        ({"sliding_window": 64}, True),
        ({"sliding_window": 64, "use_sliding_window": False}, False),
        ({"sliding_window": 512}, False),  # all of the context
        ({"text_config": {"sliding_window": 64}}, True),
    ],
)
def test_windows(config, windowed):
    assert has_window({"max_position_embeddings": 512, **config}) is windowed


class TestPooling:
    def write(self, path, **modes):
        (path / "1_Pooling").mkdir()
        (path / "1_Pooling" / "config.json").write_text(
            json.dumps({"word_embedding_dimension": 8, **modes})
        )
        return path

    def test_without_the_file_it_is_the_mean(self, tmp_path):
        assert pooling_of(tmp_path) == "mean"

    def test_the_file_decides(self, tmp_path):
        path = self.write(tmp_path, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
        assert pooling_of(path) == "cls"

    def test_newer_files_name_the_way(self, tmp_path):
        path = self.write(tmp_path, pooling_mode="lasttoken")
        assert pooling_of(path) == "last_token"

    def test_another_way_is_refused_by_name(self, tmp_path):
        path = self.write(tmp_path, pooling_mode_max_tokens=True)
        with pytest.raises(EngineStartError, match="pooling_mode_max_tokens"):
            pooling_of(path)

    @pytest.mark.parametrize("way", ["max", ["mean", "cls"]])
    def test_so_is_one_in_a_newer_file(self, tmp_path, way):
        with pytest.raises(EngineStartError, match=r"pools by (max|mean, cls);"):
            pooling_of(self.write(tmp_path, pooling_mode=way))

    def test_the_file_may_lie_elsewhere(self, tmp_path):
        part = {"type": "sentence_transformers.models.Pooling", "path": "2_Pooling"}
        (tmp_path / "modules.json").write_text(json.dumps([part]))
        (tmp_path / "2_Pooling").mkdir()
        (tmp_path / "2_Pooling/config.json").write_text('{"pooling_mode": "cls"}')
        assert pooling_of(tmp_path) == "cls"

    def test_instructions_that_are_left_out_of_the_mean_are_refused(self, tmp_path):
        path = self.write(tmp_path, pooling_mode_mean_tokens=True, include_prompt=False)
        prompts = {"prompts": {"query": "Find: "}, "default_prompt_name": "query"}
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
        assert instructions_of(path, "", "", "mean") == {None: "", "query": "", "document": ""}
        with pytest.raises(EngineStartError, match=r"\(include_prompt\).* set query_instruction"):
            instructions_of(path, "", None, "mean")
        for pooling in ("cls", "last_token"):  # which take one token, and it stays
            assert instructions_of(path, None, None, pooling)["query"] == "Find: "


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *(("architectures", one) for one in ("3", '"Llama"', "{}", "null", "[]")),
        *(("text_config", one) for one in ("3", "[]", "null")),
        *((name, one) for one in ("-1", '"x"', "0.5") for name in ("vocab_size", "n_positions")),
    ],
)
def test_a_damaged_field_states_nothing(tmp_path, field, wrong):
    (tmp_path / "config.json").write_text(f'{{"model_type": "llama", "{field}": {wrong}}}')
    engine = OpenVINOEngine(str(tmp_path))
    assert engine.stated().vocabulary is None
    assert engine.stated_inputs() == ("text",)
    assert engine.stated_context_length() == FALLBACK_CONTEXT
    assert stated_vocabulary(str(tmp_path)) is None


def test_the_context_is_known_before_anything_is_loaded(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 77}))
    assert OpenVINOEngine(str(tmp_path)).stated_context_length() == 77
    assert (
        OpenVINOEngine(str(tmp_path), engine_kwargs={"max_model_len": 50}).stated_context_length()
        == 50
    )
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 24}')
    assert OpenVINOEngine(str(tmp_path)).stated_context_length() == 24
    assert OpenVINOEngine("demo").stated_context_length() == 4096
    for nothing in ("org/name", str(tmp_path / "none.gguf"), str(tmp_path / "none")):
        assert OpenVINOEngine(nothing).stated_context_length() is None
