"""Makes a tiny Qwen2-VL with random weights, and of it the archive that tests unpack. Needs the
extra `convert`, and transformers 5.0.0: optimum-intel 2.1 exports such models with no later one.

    python tools/make_video_model.py tests/support/video_model.zip
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from tiny_models import archive_of_vision, byte_level_bpe

PATCH, MERGE = 14, 2
END, START = "<|im_end|>", "<|im_start|>"
MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEXT = (
    "system user assistant what happens in the video? a cat, a dog, a red ball that rolls to the"
    " left. describe the picture in one word"
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif p['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIXELS = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 4 * (PATCH * MERGE) ** 2,
    "max_pixels": 16 * (PATCH * MERGE) ** 2,
    "patch_size": PATCH,
    "merge_size": MERGE,
    "temporal_patch_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def write_video_model(path: Path) -> Any:
    """Write the model in Hugging Face's form, and return it."""
    torch, transformers = import_module("torch"), import_module("transformers")
    torch.manual_seed(0)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe([TEXT] * 3, 400, (END, START, *MARKS)),
        eos_token=END,
        pad_token=END,
    )
    tokenizer.chat_template = TEMPLATE
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(MARKS))
    config = transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [4, 6, 6]},
            "eos_token_id": 0,
            "pad_token_id": 0,
            "initializer_range": 0.3,
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "initializer_range": 0.3,
        },
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
    model = transformers.Qwen2VLForConditionalGeneration(config).eval()
    model.generation_config.update(eos_token_id=0, pad_token_id=0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    # Its processors want torchvision.
    (path / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    return model


if __name__ == "__main__":
    archive_of_vision(write_video_model, Path(sys.argv[1]))
