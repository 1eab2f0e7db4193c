"""Makes a tiny Qwen3-VL-Embedding with random weights, which embeds texts and images, and of it the
archive that tests unpack. Needs the extra `convert` and Pillow.

    python tools/make_image_embedding_model.py tests/support/image_embedding_model.zip
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from tiny_models import byte_level_bpe, pack

PATCH, SIDE, WIDTH = 16, 4, 64
MEAN = 0.5
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
TEXT = "system user assistant Represent the user's input. Find what fits the query: a cat, a dog"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}" + IMAGE + "{% elif 'text' in p %}"
    "{{ p['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPTS = {"query": "Find what fits the query.", "document": "Represent the user's input."}


def write_image_embedding_model(path: Path) -> Any:
    """Write the model in Hugging Face's form, and return it."""
    torch, transformers = import_module("torch"), import_module("transformers")
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    ids = dict(zip(SPECIAL, range(len(SPECIAL)), strict=True))
    text = {
        **{"vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
        **{"head_dim": 32, "max_position_embeddings": 1024, "initializer_range": 0.3},
        "rope_parameters": {
            **{"rope_type": "default", "rope_theta": 10_000.0},
            **{"mrope_section": [6, 5, 5], "mrope_interleaved": True},
        },
    }
    vision = {
        **{"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "depth": 2, "num_heads": 2},
        **{"patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2},
        **{"out_hidden_size": WIDTH, "num_position_embeddings": SIDE**2},
        **{"deepstack_visual_indexes": [0], "initializer_range": 0.3},
    }
    config = transformers.Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = transformers.Qwen3VLModel(config).eval()
    model.half().float().save_pretrained(path)
    tokenizer.save_pretrained(path)
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        **{"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2},
        "size": {"shortest_edge": (2 * PATCH) ** 2, "longest_edge": (8 * PATCH) ** 2},
        **{"image_mean": [MEAN] * 3, "image_std": [MEAN] * 3},
    }
    _write(path / "preprocessor_config.json", settings)
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    modules = [
        {"idx": at, "name": str(at), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for at, (kind, folder) in enumerate(kinds)
    ]
    _write(path / "modules.json", modules)
    _write(path / "1_Pooling" / "config.json", {"pooling_mode_lasttoken": True})
    prompts = {"prompts": PROMPTS, "default_prompt_name": "document"}
    _write(path / "config_sentence_transformers.json", prompts)
    return model


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def _tokenizer() -> Any:
    plain = byte_level_bpe([TEXT] * 3, 400, SPECIAL)
    end = SPECIAL[0]
    plain.post_processor = import_module("tokenizers").processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A $B {end}", special_tokens=[(end, 0)]
    )
    made = import_module("transformers").PreTrainedTokenizerFast(
        tokenizer_object=plain,
        eos_token=end,
        pad_token=end,
        additional_special_tokens=list(SPECIAL[1:]),
    )
    made.chat_template = TEMPLATE
    return made


def main(archive: Path) -> None:
    """Make the archive, with weights of 8 bits."""
    from penstock.engines.openvino.model.source import convert

    with tempfile.TemporaryDirectory() as name:
        os.environ["PENSTOCK_CACHE_DIR"] = name
        source = Path(name, "source")
        write_image_embedding_model(source)
        pack(convert(str(source), "embed", "int8"), archive)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
