"""Makes a tiny LLaVA or Qwen2-VL with random weights, and of it the archive that tests unpack.
Needs the extra `convert` and Pillow; for the second also transformers 4.57, as the exporter of 2026
takes no later one for it.

    python tools/make_vision_model.py tests/support/vision_model.zip
    python tools/make_vision_model.py tests/support/qwen_model.zip
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from tiny_models import byte_level_bpe, export, pack

SIDE, PATCH = 56, 14
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
TEXT = (
    "USER: what is in the picture? ASSISTANT: a cat, a dog, a red ball. system image describe the"
    " photo in one word"
)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>\n"
    "{% elif p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def write_vision_model(path: Path, template: str = TEMPLATE) -> Any:
    """Write the model in Hugging Face's form, and return it."""
    torch, transformers = import_module("torch"), import_module("transformers")
    torch.manual_seed(0)
    tokenizer = _tokenizer(template)
    vision = transformers.CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        initializer_range=0.3,
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=3)
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return model


def _tokenizer(template: str) -> Any:
    plain = byte_level_bpe([TEXT] * 3, 400, SPECIAL, "<unk>")
    made = import_module("transformers").PreTrainedTokenizerFast(
        tokenizer_object=plain,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    made.chat_template = template
    return made


QWEN_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_IMAGES = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
    "min_pixels": 784,
    "max_pixels": 200704,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def write_qwen_model(path: Path) -> None:
    """Write a Qwen2-VL, whose tokens have three positions, in Hugging Face's form."""
    torch, transformers = import_module("torch"), import_module("transformers")
    torch.manual_seed(0)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe([TEXT] * 3, 400, QWEN_SPECIAL),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(QWEN_SPECIAL[1:]),
    )
    tokenizer.chat_template = QWEN_TEMPLATE
    named = {name: QWEN_SPECIAL.index(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    named |= {name: QWEN_SPECIAL.index(f"<|{name}_pad|>") for name in ("image", "video")}
    config = transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "bos_token_id": None,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "initializer_range": 0.3,
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [4, 6, 6]},
        },
        vision_config={"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 2},
        **{f"{name}_token_id": place for name, place in named.items()},
    )
    transformers.Qwen2VLForConditionalGeneration(config).eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(QWEN_IMAGES))


def main(archive: Path) -> None:
    """Make the archive, with weights of 8 bits."""
    from penstock.engines.openvino.model.source import keep_image_settings

    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "source"), Path(name, "target")
        write_qwen_model(source) if "qwen" in archive.name else write_vision_model(source)
        export(source, target, "image-text-to-text", "int8")
        keep_image_settings(source, target)
        pack(target, archive)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
