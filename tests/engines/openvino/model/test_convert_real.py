"""Conversion with the real exporter: tiny random models of each kind, made here, must answer as
torch does.
"""

import io
import json
import wave
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from make_image_embedding_model import IMAGE, PROMPTS, write_image_embedding_model
from make_vision_model import write_vision_model

from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.model import source as module
from penstock.engines.openvino.model.weights import weight_bytes
from penstock.errors import EngineStartError
from penstock.testing import chat_request, deltas_of
from penstock.types import (
    ChatRequest,
    EmbeddingRequest,
    RerankRequest,
    Sampling,
    TranscriptionRequest,
    Usage,
)
from torch_models import (
    SPEECH_COMMANDS,
    TEXT,
    byte_tokenizer,
    recording,
    save_tokenizer,
    speech_model,
)
from vision_models import image_file, image_part, picture

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("default")]

# As torch computes: in the default precisions near ties of random models may fall the other way.
ENGINE_OPTIONS = {
    "inference_precision": "f32",
    "kv_cache_precision": "f32",
    "num_threads": 2,
    "kv_cache_memory_bytes": 64 << 20,
}


def save(model, path):
    """With weights that fp16 holds exactly, so that the converted model computes the same."""
    model.half().float().eval().save_pretrained(path)
    return model


def word_tokenizer(path):
    tokenizers = import_module("tokenizers")
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    vocabulary = {
        word: at for at, word in enumerate([*special.values(), *sorted(set(TEXT.split()))])
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    # No token_type_ids in its model_input_names: conversion has to add them.
    return save_tokenizer(tokenizer, path, special, model_max_length=64)


def bert(kind, tokenizer, **settings):
    import transformers

    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
        **settings,
    )
    return getattr(transformers, kind)(config)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest_asyncio.fixture
async def engine(monkeypatch):
    """A function that starts an engine, stops it, and starts it again, which must convert
    nothing.
    """
    engines = []

    async def start(source, **options):
        for attempt in range(2):
            engine = OpenVINOEngine(str(source), engine_kwargs={**ENGINE_OPTIONS, **options})
            await engine.start()
            if attempt == 0:
                await engine.stop()
                monkeypatch.setattr(module, "_convert", None)
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        await engine.stop()


def list_modules(path, *names):
    folders = ["", *(f"1_{name}" for name in names[1:])]
    listed = [
        {"idx": at, "name": str(at), "path": folder, "type": f"sentence_transformers.models.{name}"}
        for at, (name, folder) in enumerate(zip(names, folders, strict=True))
    ]
    (path / "modules.json").write_text(json.dumps(listed))
    for folder in folders[1:]:
        (path / folder).mkdir()


async def test_a_sparse_model(engine, tmp_path):
    import torch

    torch.manual_seed(0)
    tokenizer = word_tokenizer(tmp_path / "splade")
    model = save(bert("BertForMaskedLM", tokenizer), tmp_path / "splade")
    list_modules(tmp_path / "splade", "MLMTransformer", "SpladePooling")
    settings = '{"pooling_strategy": "max", "activation_function": "relu"}'
    (tmp_path / "splade/1_SpladePooling/config.json").write_text(settings)
    started = await engine(tmp_path / "splade")
    texts = ["the quick brown fox", "green hills"]
    found = (await started.embeddings(EmbeddingRequest(texts, vectors="sparse"))).sparse
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        wanted = torch.log1p(torch.relu(logits)).amax(0).numpy()
        assert vector.indices == np.nonzero(wanted)[0].tolist()
        assert np.allclose(vector.values, wanted[vector.indices], atol=1e-4)


async def test_a_late_interaction_model(engine, tmp_path):
    import torch

    torch.manual_seed(0)
    tokenizer = word_tokenizer(tmp_path / "colbert")
    model = save(bert("BertModel", tokenizer), tmp_path / "colbert")
    list_modules(tmp_path / "colbert", "Transformer", "Dense")
    weight = torch.randn(8, 32)
    folder = tmp_path / "colbert/1_Dense"
    saver = import_module("safetensors.torch")
    saver.save_file({"linear.weight": weight}, folder / "model.safetensors")
    settings = '{"activation_function": "torch.nn.modules.linear.Identity"}'
    (folder / "config.json").write_text(settings)
    started = await engine(tmp_path / "colbert")
    request = EmbeddingRequest(["the quick brown fox"], vectors="multi")
    (vectors,) = (await started.embeddings(request)).multi
    with torch.no_grad():
        states = model(**tokenizer(request.inputs[0], return_tensors="pt")).last_hidden_state[0]
    wanted = torch.nn.functional.normalize(states @ weight.T, dim=-1)
    assert np.allclose(vectors, wanted.numpy(), atol=1e-4)


async def test_language_model(engine, tmp_path):
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = byte_tokenizer(
        tmp_path / "llama", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    )
    tokenizer.save_pretrained(tmp_path / "llama")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=128,
        max_position_embeddings=128,
        initializer_range=0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = save(transformers.LlamaForCausalLM(config), tmp_path / "llama")
    started = await engine(tmp_path / "llama")
    assert started.capabilities.context_length == 128
    sampling = Sampling(max_tokens=8, temperature=0, ignore_eos=True)
    chat = await deltas_of(started, chat_request("the quick brown fox", sampling))
    prompt = tokenizer("user: the quick brown fox\nassistant:", return_tensors="pt").input_ids
    assert chat[-1].usage == Usage(prompt.shape[1], 8)
    with torch.no_grad():
        wanted = model.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)[
            0, prompt.shape[1] :
        ]
    assert [token for delta in chat for token in delta.token_ids] == wanted.tolist()


def test_the_command_converts_once_and_says_the_sizes(tmp_path, capfd):
    import transformers
    from click.testing import CliRunner

    from penstock.cli.models import models

    tokenizer = byte_tokenizer(tmp_path / "gpt2", {"eos_token": "</s>"})
    tokenizer.save_pretrained(tmp_path / "gpt2")
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=64, n_layer=1, n_head=2
    )
    save(transformers.GPT2LMHeadModel(config), tmp_path / "gpt2")
    arguments = ["convert", str(tmp_path / "gpt2"), "--weight-format", "int8"]
    first, again = (CliRunner().invoke(models, arguments) for _ in range(2))
    assert first.exception is None
    assert again.output.splitlines()[-1] == first.output.splitlines()[-1]
    converted = Path(first.output.splitlines()[-1])
    plain = CliRunner().invoke(models, [*arguments[:2], "--weight-format", "fp16"])
    other = Path(plain.output.splitlines()[-1])
    assert weight_bytes(converted) < 0.7 * weight_bytes(other)


async def test_embedding_model(engine, tmp_path):
    import torch

    torch.manual_seed(0)
    tokenizer = word_tokenizer(tmp_path / "bert")
    model = save(bert("BertModel", tokenizer), tmp_path / "bert")
    started = await engine(tmp_path / "bert")
    texts = ["the quick fox", "rain falls on green hills and rivers", "dog"]
    got = await started.embeddings(EmbeddingRequest(texts))
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch.attention_mask[..., None]
    wanted = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
    assert np.array(got.vectors) == pytest.approx(wanted.numpy(), abs=2e-3)
    assert got.usage.prompt_tokens == int(mask.sum())


async def test_rerank_model(engine, tmp_path):
    import torch

    torch.manual_seed(0)
    tokenizer = word_tokenizer(tmp_path / "cross")
    model = save(bert("BertForSequenceClassification", tokenizer, num_labels=1), tmp_path / "cross")
    started = await engine(tmp_path / "cross")
    query, documents = (
        "the quick fox",
        ["rain falls on green hills and rivers", "fox", "the lazy dog"],
    )
    got = await started.rerank(RerankRequest(query, documents))
    batch = tokenizer(
        [query] * 3, documents, padding=True, return_tensors="pt", return_token_type_ids=True
    )
    assert batch.token_type_ids.any()
    with torch.no_grad():
        logits = model(**batch).logits
    assert got.scores == pytest.approx(logits.sigmoid()[:, 0].tolist(), abs=2e-3)
    assert got.usage.prompt_tokens == int(batch.attention_mask.sum())


async def test_speech_model(engine, tmp_path, cache):
    import torch
    import transformers

    path = tmp_path / "whisper"
    model, tokenizer = speech_model(path)
    save(model, path)
    started = await engine(path)
    assert started.capabilities.tasks == {"transcriptions", "tokenize", "detokenize"}
    audio = recording()
    with wave.open(io.BytesIO(audio)) as read:
        samples = np.frombuffer(read.readframes(read.getnframes()), "<i2")
    got = await started.transcriptions(TranscriptionRequest(audio, language="en", max_tokens=12))
    features = transformers.WhisperFeatureExtractor.from_pretrained(path)
    inputs = features(samples / 32768, sampling_rate=16_000, return_tensors="pt").input_features
    ids = dict(zip(SPEECH_COMMANDS, tokenizer.convert_tokens_to_ids(SPEECH_COMMANDS), strict=True))
    start = ("startoftranscript", "en", "transcribe", "notimestamps")
    tokens = torch.tensor([[ids[f"<|{name}|>"] for name in start]])
    with torch.no_grad():
        for _ in range(12):
            logits = model(input_features=inputs, decoder_input_ids=tokens).logits[0, -1]
            logits[model.generation_config.suppress_tokens] = -torch.inf
            tokens = torch.cat([tokens, logits.argmax().view(1, 1)], dim=1)
    assert got.text == tokenizer.decode(tokens[0, 4:]).strip()
    assert got.usage.completion_tokens == 12
    # Times are tokens as well, so a model that tells them must be free to.
    (converted,) = (path.parent for path in cache.glob("converted/*/generation_config.json"))
    settings = json.loads((converted / "generation_config.json").read_text())
    settings["suppress_tokens"] = [ids[name] for name in SPEECH_COMMANDS if "." not in name]
    (converted / "generation_config.json").write_text(json.dumps(settings))
    timed = await (await engine(converted)).transcriptions(
        TranscriptionRequest(audio, language="en", max_tokens=12, timestamps=True)
    )
    assert timed.duration == 1.5
    assert timed.segments
    assert all(0 <= segment.start <= segment.end for segment in timed.segments)


def neo(path):
    """A small GPT-Neo, of whose attention GenAI knows no form."""
    import transformers

    tokenizer = byte_tokenizer(path, {"eos_token": "</s>"})
    config = transformers.GPTNeoConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        initializer_range=0.3,
    )
    return save(transformers.GPTNeoForCausalLM(config), path)


async def test_a_model_that_the_pipeline_computes_otherwise(tmp_path):
    neo(tmp_path / "neo")
    with pytest.raises(EngineStartError, match=r"answers otherwise than the model does"):
        await OpenVINOEngine(str(tmp_path / "neo")).start()


async def test_a_model_without_some_of_its_weights(tmp_path):
    path = tmp_path / "neo"
    weights = neo(path).state_dict()
    kept = {name: one for name, one in weights.items() if ".h.1.mlp" not in name}
    kept.pop("lm_head.weight")  # tied, and so no loss
    import_module("safetensors.torch").save_file(
        kept, path / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(EngineStartError, match=r"has no weights, .*transformer\.h\.1\.mlp.*fetch"):
        await OpenVINOEngine(str(path)).start()


async def test_what_the_exporter_cannot_read(tmp_path, cache):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(
        json.dumps({"architectures": ["NoSuchForCausalLM"]})
    )
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        EngineStartError, match=r"could not be converted: \w*Error: .*\(the log: .*\.log\)"
    ):
        await OpenVINOEngine(str(tmp_path / "broken")).start()
    assert not list(cache.glob("converted/*.partial-*"))


async def test_a_hub_id_without_a_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        EngineStartError, match="there is no path 'no-such/model', and the hub does not give it"
    ):
        await OpenVINOEngine("no-such/model").start()


# As those of LLaVA's models: a content that is a text would be left out.
LISTS_ONLY = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>\n{% elif p['type'] == 'text' %}{{ p['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}ASSISTANT:"
)


async def test_vision_language_model(engine, tmp_path):
    import torch
    import transformers

    model = save(write_vision_model(tmp_path / "llava", LISTS_ONLY), tmp_path / "llava")
    started = await engine(tmp_path / "llava")
    assert started.capabilities.inputs == ("text", "image")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "llava")
    sampling = Sampling(max_tokens=8, temperature=0, ignore_eos=True)
    for images in ([], [image_file(1, size=(56, 56))]):
        parts = [*map(image_part, images), {"type": "text", "text": "what is in the picture?"}]
        chat = await deltas_of(started, ChatRequest([{"role": "user", "content": parts}], sampling))
        shown = "<image>" * 16 + "\n" if images else ""
        text = f"USER: {shown}what is in the picture? ASSISTANT:"
        inputs = processor.tokenizer(text, return_tensors="pt")
        assert chat[-1].usage == Usage(inputs.input_ids.shape[1], 8)
        if images:
            pixels = processor.image_processor(picture(1, (56, 56)), return_tensors="pt")
            inputs["pixel_values"] = pixels.pixel_values
        with torch.no_grad():
            wanted = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)[
                0, inputs.input_ids.shape[1] :
            ]
        assert [token for delta in chat for token in delta.token_ids] == wanted.tolist()


async def test_image_embedding_model(engine, tmp_path):
    import torch
    import transformers

    source = tmp_path / "embedder"
    if tuple(map(int, version("transformers").split(".")[:2])) > (5, 0):
        write_image_embedding_model(source)
        with pytest.raises(EngineStartError, match=r"Maximum required is 5\.0"):
            await engine(source)
        pytest.skip("optimum-intel converts it with transformers up to 5.0")
    write_image_embedding_model(source)
    model = transformers.AutoModel.from_pretrained(source)  # with frequencies of 32 bits
    started = await engine(source)
    assert started.capabilities.inputs == ("text", "image")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    reader = transformers.AutoImageProcessor.from_pretrained(source, use_fast=False)
    sides = [(64, 64), (128, 96), (50, 70), (300, 200)]
    for seed, size in enumerate([None, *sides]):
        parts = [{"type": "text", "text": "a cat"}]
        shown, seen = "", {}
        if size is not None:
            parts.insert(0, image_part(image_file(seed, size=size)))
            seen = reader(picture(seed, size), return_tensors="pt")
            patches = int(seen["image_grid_thw"].prod()) // 4
            shown = IMAGE.replace("<|image_pad|>", "<|image_pad|>" * patches)
        text = (
            f"<|im_start|>system\n{PROMPTS['document']}<|im_end|>\n"
            f"<|im_start|>user\n{shown}a cat<|im_end|>\n<|im_start|>assistant\n"
        )
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs, **seen).last_hidden_state
        wanted = torch.nn.functional.normalize(states[0, -1], dim=0)
        chat = ChatRequest([{"role": "user", "content": parts}])
        found = await started.embeddings(EmbeddingRequest([chat]))
        assert found.vectors[0] == pytest.approx(wanted.tolist(), abs=1e-4)
        assert found.usage == Usage(inputs.input_ids.shape[1])
