"""What is refused before a model is loaded, and what its files say of it."""

import json
import struct
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest

from penstock import demo
from penstock.engines.base import Capabilities, LLMEngine, Stated
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import RequestError, UnsupportedError
from penstock.serve.models.data_parallel import EngineGroup
from penstock.serve.models.preflight import check_before_load
from penstock.types import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Sampling,
    StructuredOutput,
)

SMALL = Stated(vocabulary=10, tasks=frozenset({"completions", "tokenize"}))


@pytest.mark.parametrize(
    ("task", "request_", "param"),
    [
        ("completions", CompletionRequest([1, 10]), "prompt"),
        ("completions", CompletionRequest("a", Sampling(stop_token_ids=(10,))), "stop_token_ids"),
        ("completions", CompletionRequest("a", Sampling(logit_bias=((10, 1.0),))), "logit_bias"),
        (
            "completions",
            CompletionRequest("a", Sampling(allowed_token_ids=(10,))),
            "allowed_token_ids",
        ),
        ("", EmbeddingRequest(["a", [1, 10]]), "input"),
        ("", [1, 10], "tokens"),
    ],
)
def test_ids_beyond_the_vocabulary_are_refused(task, request_, param):
    with pytest.raises(RequestError, match="token ids must be from 0 to 9") as caught:
        check_before_load(request_, task, stated=SMALL)
    assert caught.value.param == param
    check_before_load(request_, task)  # where nothing is stated, anything may be right


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        *(("regex", one) for one in ("[^]", "[](]", "[a[b](]", "[\\d-x]", "\\e", "a**", "(?<n>a)")),
        *(
            ("regex", one)
            for one in ("(?=a)b", "\\p{L}", "(?x)a # (", "a{,5}", "[[:alpha:]]", "^*")
        ),
        *(("regex", one) for one in (f"({'a' * 5000}", "(?i)(a", "(?si:a")),  # may take its time
        ("regex", "(" * 1000 + ")" * 1000),
        ("grammar", 'root ::= "a"'),
        ("grammar", 'start: "a"'),
    ],
)
def test_a_constraint_that_some_engine_may_read_is_left_to_the_engine(kind, spec):
    sampling = Sampling(structured=StructuredOutput(kind, spec))
    check_before_load(CompletionRequest("a", sampling), "completions")


def test_tasks_that_the_model_lacks_are_refused():
    with pytest.raises(UnsupportedError, match="the vllm engine does not support chat"):
        check_before_load(ChatRequest([]), "chat", stated=SMALL, engine="vllm")
    check_before_load(CompletionRequest("a"), "completions", stated=SMALL)
    check_before_load(None, "tokenizer_info", stated=SMALL)
    able = Capabilities(frozenset({"chat"}), 0, 1)  # what it was able to has the last word
    check_before_load(ChatRequest([]), "chat", stated=SMALL, known=able)


def test_vectors_that_the_model_did_not_make_are_refused():
    able = Capabilities(frozenset({"embeddings"}), 0, 1, vectors=("dense", "multi"))
    asked = EmbeddingRequest(["a"], vectors="sparse")
    with pytest.raises(UnsupportedError, match="the vllm engine makes dense and multi vectors"):
        check_before_load(asked, "embeddings", known=able, engine="vllm")
    check_before_load(asked, "embeddings")


@pytest.mark.parametrize("engine", [OpenVINOEngine("demo"), SimulatedEngine()])
def test_more_log_probabilities_than_the_engine_ever_gives_are_refused(engine):
    for many, refused in ((1000, True), (1, False)):
        asked = ChatRequest([], Sampling(logprobs=many))
        with pytest.raises(UnsupportedError, match="top_logprobs") if refused else nullcontext():
            check_before_load(asked, "chat", stated=engine.stated())
        check_before_load(asked, "chat")


@pytest.mark.parametrize("engine", [OpenVINOEngine("demo"), SimulatedEngine()])
def test_pictures_are_refused_where_the_model_reads_texts(engine):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    asked = ChatRequest([{"role": "user", "content": [part]}])
    reads = Capabilities(frozenset({"chat"}), 0, 1, inputs=("text", "image"))
    with pytest.raises(UnsupportedError, match="reads texts, no 'image_url'"):
        check_before_load(asked, "chat", stated=engine.stated())
    with pytest.raises(UnsupportedError, match="reads texts, no 'image_url'"):
        check_before_load(asked, "chat", known=msgspec.structs.replace(reads, inputs=("text",)))
    undeclared = Capabilities(frozenset({"chat"}), 0, 1)  # a user's engine, or an endpoint's
    for able in (reads, undeclared):
        check_before_load(asked, "chat", known=able)
    check_before_load(asked, "chat")


def model(path: Path, **config: object) -> str:
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def tasks_of(engine: LLMEngine) -> frozenset[str]:
    tasks = engine.stated().tasks
    assert tasks is not None
    return tasks


def test_what_the_engines_say_of_a_model(tmp_path):
    demo_size = json.loads((demo.model_path("huggingface") / "config.json").read_bytes())
    assert OpenVINOEngine("demo").stated().vocabulary == demo_size["vocab_size"]
    assert OpenVINOEngine(str(tmp_path / "none")).stated() == Stated()
    assert "chat" in tasks_of(OpenVINOEngine("demo"))
    simulated = SimulatedEngine()
    able = simulated.capabilities
    assert simulated.stated() == Stated(256, able.tasks, able.max_top_logprobs, ("text",))
    assert EngineGroup([simulated]).stated() == simulated.stated()


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertModel", "embeddings"),
        ("BertForSequenceClassification", "score"),
        ("WhisperForConditionalGeneration", "transcriptions"),
        ("LlamaForCausalLM", "chat"),
    ],
)
def test_the_task_of_local_files(tmp_path, architecture, task):
    engine = OpenVINOEngine(model(tmp_path, architectures=[architecture], vocab_size=9))
    assert engine.stated().vocabulary == 9
    assert {"embeddings", "score", "transcriptions", "chat"} & tasks_of(engine) == {task}


@pytest.mark.parametrize(
    ("file", "config", "inputs"),
    [
        ("openvino_model.xml", {}, ("text",)),
        ("openvino_model.xml", {"vision_config": {}}, ("text", "image")),
        ("openvino_language_model.xml", {"img_processor": {}}, ("text", "image")),
    ],
)
def test_what_a_model_reads_by_its_config_or_its_files(tmp_path, file, config, inputs):
    (tmp_path / file).touch()
    engine = OpenVINOEngine(model(tmp_path, architectures=["PhiForCausalLM"], **config))
    assert engine.stated().inputs == engine.stated_inputs() == inputs


def test_the_vocabulary_of_a_gguf_file(tmp_path):
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    tokens = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3)
    tokens += text("a") + text("b") + text("c")
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + tokens)
    assert OpenVINOEngine(str(file)).stated().vocabulary == 3
    assert "chat" in tasks_of(OpenVINOEngine(str(file)))
