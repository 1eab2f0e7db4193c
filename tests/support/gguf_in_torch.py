"""A GGUF file of a Llama as a model of torch's, for tests in environments that have torch and
transformers. Neither OpenVINO nor Penstock reads the file here.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from torch_models import save_tokenizer


def hugging_face_form(path: str, target: Path) -> Any:
    """Save the model of the GGUF file `path` and its tokenizer in `target`, and return the model.

    Its weights are f32 numbers that fp16 holds exactly.
    """
    gguf, torch, transformers = (import_module(name) for name in ("gguf", "torch", "transformers"))
    file = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        return file.get_field(name).contents()

    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    config = transformers.LlamaConfig(
        vocab_size=len(field("tokenizer.ggml.tokens")),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=field("llama.rope.freq_base"),
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
        pad_token_id=field("tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=True,
    )
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            part, _, kind = name.rpartition(".")
            tensor = tensors[f"{names.get_name(part)}.{kind}"]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                # llama.cpp turns pairs of neighbours, transformers a head's two halves.
                count = heads if name.endswith("q_proj.weight") else kv_heads
                pairs = values.reshape(count, len(values) // count // 2, 2, -1)
                values = pairs.swapaxes(1, 2).reshape(values.shape)
            weights.copy_(torch.tensor(values).half())
    model.eval().save_pretrained(target)
    _save_tokenizer(field, target)
    return model


def _save_tokenizer(field: Any, target: Path) -> None:
    tokenizers = import_module("tokenizers")
    assert field("tokenizer.ggml.pre") == "smollm"
    names = field("tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in field("tokenizer.ggml.merges")]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    steps = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = steps.Sequence(
        [steps.Digits(individual_digits=True), steps.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    kinds = field("tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            tokenizers.AddedToken(name, normalized=False, special=True)
            for name, kind in zip(names, kinds, strict=True)
            if kind == import_module("gguf").TokenType.CONTROL
        ]
    )
    special = {
        f"{kind}_token": names[field(f"tokenizer.ggml.{stored}_token_id")]
        for kind, stored in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items()
    }
    wrapped = save_tokenizer(tokenizer, target, special)
    wrapped.chat_template = field("tokenizer.chat_template")
    wrapped.save_pretrained(target)
