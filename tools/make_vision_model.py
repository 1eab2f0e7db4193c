"""Makes a tiny LLaVA with random weights, and of it the archive that tests unpack. Needs the extra
`convert` and Pillow.

    python tools/make_vision_model.py tests/support/vision_model.zip
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from tiny_models import archive_of_vision, byte_level_bpe

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


if __name__ == "__main__":
    archive_of_vision(write_vision_model, Path(sys.argv[1]))
