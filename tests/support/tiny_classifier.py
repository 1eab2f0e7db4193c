"""A model in Hugging Face form that sorts texts into classes, for engines that read such."""

import json
import shutil
from pathlib import Path

from penstock.demo import model_path


def write_classifier(folder: Path) -> None:
    """A tiny classifier with random weights and the demo model's tokenizer."""
    import torch
    import transformers

    source = model_path("huggingface")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        id2label={0: "calm", 1: "angry", 2: "glad"},
        label2id={"calm": 0, "angry": 1, "glad": 2},
    )
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)
