"""Tiny models with random weights in Hugging Face form, for tests in environments that have torch
and transformers.
"""

from __future__ import annotations

import io
import json
import shutil
import wave
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from tiny_models import byte_level_bpe

from penstock.demo import model_path

TEXT = (
    "the quick brown fox jumps over a lazy dog while rain falls on green hills and rivers run to"
    " the sea"
)
END = "<|endoftext|>"
SPEECH_COMMANDS = [
    *(
        f"<|{name}|>"
        for name in ("startoftranscript", "en", "de", "translate", "transcribe", "startoflm")
    ),
    *(f"<|{name}|>" for name in ("startofprev", "nospeech", "notimestamps")),
    *(f"<|{at * 0.02:.2f}|>" for at in range(1501)),
]
IMAGE = "<image>"


def save_tokenizer(tokenizer: Any, path: Path, special: dict[str, str], **settings: Any) -> Any:
    transformers = import_module("transformers")
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **special, **settings
    )
    wrapped.save_pretrained(path)
    return wrapped


def byte_tokenizer(
    path: Path, special: dict[str, str], added: list[str] | tuple[str, ...] = (), **settings: Any
) -> Any:
    """A tokenizer that knows every byte and a few pieces of words."""
    tokenizer = byte_level_bpe([TEXT], 300)
    tokenizer.add_special_tokens([*special.values(), *added])
    return save_tokenizer(tokenizer, path, special, **settings)


def speech_model(path: Path) -> tuple[Any, Any]:
    """A Whisper that says random words: its model, saved by the caller, and its tokenizer."""
    torch, transformers = import_module("torch"), import_module("transformers")
    torch.manual_seed(0)
    special = {"eos_token": END, "bos_token": END, "pad_token": END, "unk_token": END}
    tokenizer = byte_tokenizer(path, special, SPEECH_COMMANDS)
    ids = dict(zip(SPEECH_COMMANDS, tokenizer.convert_tokens_to_ids(SPEECH_COMMANDS), strict=True))
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(path)
    common = {
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=64,  # vLLM's CPU kernels know no smaller heads
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        init_std=0.5,
        **common,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(
        is_multilingual=True,
        lang_to_id={name: ids[name] for name in ("<|en|>", "<|de|>")},
        task_to_id={name: ids[f"<|{name}|>"] for name in ("translate", "transcribe")},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=50,
        max_length=448,
        return_timestamps=False,
        begin_suppress_tokens=[],
        suppress_tokens=[tokenizer.eos_token_id, *ids.values()],  # so that it says words
        **common,
    )
    return model, tokenizer


def recording(seconds: float = 1.5) -> bytes:
    """A tone as a WAV file, 16 kHz mono."""
    numpy = import_module("numpy")
    samples = (8192 * numpy.sin(numpy.arange(int(16_000 * seconds)) / 10)).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(samples.tobytes())
    return file.getvalue()


def classifier(path: Path, labels: list[str]) -> None:
    """Sorts texts into classes; with the demo model's tokenizer."""
    torch, transformers = import_module("torch"), import_module("transformers")
    source = model_path("huggingface")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=json.loads((source / "config.json").read_text())["vocab_size"],
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    transformers.LlamaForSequenceClassification(config).save_pretrained(path)


def vision_model(path: Path) -> None:
    """A BLIP-2, which needs no torchvision. It sees pictures of 32 × 32 pixels as 8 tokens, and its
    tokenizer begins texts with a token of its own.
    """
    torch, transformers = import_module("torch"), import_module("transformers")
    torch.manual_seed(0)
    special = {"eos_token": END, "bos_token": "<bos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = byte_tokenizer(path, special, [IMAGE])
    begin = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = import_module(
        "tokenizers"
    ).processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    template = (
        "{% for m in messages %}{{ m.content if m.content is string else m.content[-1].text }}\n{%"
        " endfor %}"
    )
    pictures = transformers.BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = transformers.Blip2Processor(pictures, tokenizer, num_query_tokens=8)
    processor.chat_template = template
    processor.tokenizer.chat_template = template
    processor.save_pretrained(path)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Blip2Config(
        vision_config={**sizes, "intermediate_size": 128, "image_size": 32, "patch_size": 8},
        qformer_config={
            **sizes,
            "intermediate_size": 128,
            "encoder_hidden_size": 64,
            "cross_attention_frequency": 1,
        },
        text_config={
            **sizes,
            "model_type": "opt",
            "ffn_dim": 128,
            "word_embed_proj_dim": 64,
            "vocab_size": len(processor.tokenizer),
            "max_position_embeddings": 512,
            "init_std": 0.5,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        num_query_tokens=8,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    model = transformers.Blip2ForConditionalGeneration(config)
    for part in (model.vision_model, model.qformer, model.language_projection):
        for weights in part.parameters():
            if weights.ndim > 1:  # so large that colours make a difference
                torch.nn.init.normal_(weights, std=0.3)
    torch.nn.init.normal_(model.query_tokens)
    model.save_pretrained(path)


def picture(color: tuple[int, int, int]) -> bytes:
    """A PNG of one colour."""
    file = io.BytesIO()
    import_module("PIL.Image").new("RGB", (32, 32), color).save(file, "PNG")
    return file.getvalue()


def reciter(path: Path, pieces: list[str]) -> None:
    """A language model that answers everything with these pieces, a token each, and then ends. No
    two are equal.

    Every token is followed by one other, whatever came before: an embedding tells a token from all
    others, the layers add nothing to it, and the head knows what comes after it.
    """
    torch, transformers, tokenizers = (
        import_module(name) for name in ("torch", "transformers", "tokenizers")
    )
    assert len(set(pieces)) == len(pieces)
    start = "<|answer|>"
    added = [
        tokenizers.AddedToken(piece, normalized=False, special=False) for piece in (start, *pieces)
    ]
    template = (
        "{% for m in messages %}{{ m.content or '' }}{{ tools | tojson if tools }}\n{% endfor %}"
        + start
    )
    special = {"eos_token": END, "bos_token": END, "pad_token": END, "unk_token": END}
    tokenizer = byte_tokenizer(path, special)
    tokenizer.add_tokens(added)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    width = -(-len(tokenizer) // 64) * 64
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    said = [*tokenizer.convert_tokens_to_ids([start, *pieces]), tokenizer.eos_token_id]
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                weights.zero_()
        torch.nn.init.eye_(model.model.embed_tokens.weight)
        for before, after in pairwise(said):
            model.lm_head.weight[after, before] = 1.0
    model.save_pretrained(path)
