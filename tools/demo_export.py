"""Saving the demo model (Hugging Face, OpenVINO IR, adapters) and the runs that check what was
saved.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from safetensors.torch import load_file, save_file

HF_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
OPENVINO_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def compact_json(path: Path) -> None:
    """Write a JSON file again without white space."""
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8"
    )


@torch.no_grad()
def round_to_half(model: torch.nn.Module) -> None:
    """Round the weights to 16-bit values, so that everything trained on top fits what is
    shipped.
    """
    for parameter in model.parameters():
        parameter.copy_(parameter.half().float())


def save_huggingface(model: Any, tokenizer: Any, target: Path) -> None:
    """Save the model in Hugging Face form with 16-bit weights."""
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(target)
    settings = json.loads((target / "tokenizer_config.json").read_text())
    settings = {
        key: settings[key]
        for key in ("eos_token", "pad_token", "model_max_length", "clean_up_tokenization_spaces")
    }
    # The name every release of transformers knows.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    compact_json(target / "tokenizer.json")
    config = model.config.to_dict()
    wanted = [
        "architectures",
        "attention_bias",
        "attention_dropout",
        "bos_token_id",
        "eos_token_id",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "initializer_range",
        "intermediate_size",
        "max_position_embeddings",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "pad_token_id",
        "rms_norm_eps",
        "rope_parameters",
        "tie_word_embeddings",
        "use_cache",
        "vocab_size",
    ]
    config = {key: config[key] for key in wanted if key in config}
    config |= {
        "architectures": ["Qwen3ForCausalLM"],
        "torch_dtype": "float16",
        "rope_theta": 10000.0,
    }
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    generation = {
        "do_sample": False,
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"],
    }
    (target / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
    weights = {
        name: tensor.half().contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def save_adapter(wrapped: Any, target: Path) -> None:
    """Save a LoRA adapter in PEFT layout with 16-bit weights."""
    target.mkdir(parents=True, exist_ok=True)
    wrapped.save_pretrained(target)
    weights = {
        name: tensor.half()
        for name, tensor in load_file(target / "adapter_model.safetensors").items()
    }
    save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = json.loads((target / "adapter_config.json").read_text())
    wanted = [
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "bias",
        "inference_mode",
        "fan_in_fan_out",
    ]
    slim: dict[str, Any] = {key: settings[key] for key in wanted}
    slim |= {
        "base_model_name_or_path": "demo",
        "target_modules": sorted(settings["target_modules"]),
        "inference_mode": True,
    }
    (target / "adapter_config.json").write_text(json.dumps(slim, indent=1) + "\n")
    for extra in target.glob("README.md"):
        extra.unlink()


def save_openvino(huggingface: Path, target: Path, scratch: Path) -> None:
    """Convert the Hugging Face form to OpenVINO IR with 8-bit weights, and its tokenizer."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import nncf
    import openvino
    from optimum.exporters.openvino import main_export
    from transformers import AutoModelForCausalLM

    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(huggingface, scratch / "source")
    model = AutoModelForCausalLM.from_pretrained(huggingface, dtype=torch.float32)
    model.save_pretrained(scratch / "source")  # traced in 32 bits
    main_export(
        str(scratch / "source"),
        str(scratch / "ir"),
        task="text-generation-with-past",
        convert_tokenizer=True,
    )
    ir = nncf.compress_weights(
        openvino.Core().read_model(scratch / "ir" / "openvino_model.xml"),
        mode=nncf.CompressWeightsMode.INT8_SYM,
    )
    target.mkdir(parents=True, exist_ok=True)
    openvino.save_model(ir, target / "openvino_model.xml", compress_to_fp16=True)
    for name in ("openvino_tokenizer", "openvino_detokenizer"):
        for suffix in (".xml", ".bin"):
            shutil.copy(scratch / "ir" / (name + suffix), target / (name + suffix))
    for name in OPENVINO_FILES:
        shutil.copy(huggingface / name, target / name)
    for path in target.glob("*.xml"):
        shrink_ir(path)
    shutil.rmtree(scratch)


def shrink_ir(path: Path) -> None:
    """Drop from an IR file what no reader needs: indentation, inner shapes and names, conversion
    notes.

    The reader works the shapes out again; the names of the layers stay, because adapters are
    matched by them.
    """
    tree = ElementTree.parse(path)
    root = tree.getroot()
    layers = root.find("layers")
    assert layers is not None
    edges = root.findall("edges/edge")
    results = {layer.get("id") for layer in layers if layer.get("type") == "Result"}
    named = {layer.get("id") for layer in layers if layer.get("type") == "Parameter"}
    named |= {edge.get("from-layer") for edge in edges if edge.get("to-layer") in results}
    if "tokenizer" not in path.name:
        for layer in layers:
            for port in layer.findall("output/port"):
                if layer.get("id") not in named:
                    port.attrib.pop("names", None)
            for port in [*layer.findall("input/port"), *layer.findall("output/port")]:
                for dim in port.findall("dim"):
                    port.remove(dim)
            for port in layer.findall("input/port"):
                port.attrib.pop("precision", None)
            for info in layer.findall("rt_info"):
                for note in [
                    note for note in info if note.get("name") in ("fused_names", "fused_names_0")
                ]:
                    info.remove(note)
                if not len(info):
                    layer.remove(info)
        general = root.find("rt_info")
        for name in ("conversion_parameters", "nncf", "optimum", "hidden_states_decoder_layers"):
            for note in general.findall(name) if general is not None else []:
                general.remove(note)
    for element in root.iter():
        if element.text is not None and not element.text.strip():
            element.text = None
        element.tail = None
    text = ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)
    path.write_text('<?xml version="1.0"?>\n' + re.sub(r" />", "/>", text) + "\n", encoding="utf-8")


def run_openvino(
    directory: Path,
    prompts: Sequence[str],
    *,
    adapter: Path | None = None,
    scale: float = 2.0,
    precision: str | None = "f32",
    limit: int = 160,
) -> list[str]:
    """Greedy replies of OpenVINO GenAI to rendered prompts."""
    import openvino_genai as genai

    settings: dict[str, Any] = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
    if adapter is not None:
        weights = genai.Adapter(str(adapter / "adapter_model.safetensors"))
        settings["adapters"] = genai.AdapterConfig(
            weights, scale, mode=genai.AdapterConfig.Mode.MODE_STATIC
        )
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    scheduler.max_num_batched_tokens = 512
    pipeline = genai.ContinuousBatchingPipeline(str(directory), scheduler, "CPU", settings)
    config = genai.GenerationConfig()
    config.max_new_tokens = limit
    config.do_sample = False
    config.apply_chat_template = False
    config.set_eos_token_id(pipeline.get_tokenizer().get_eos_token_id())
    results = pipeline.generate(list(prompts), [config] * len(prompts))
    return [result.m_generation_ids[0] for result in results]


def check_tokenizer(
    directory: Path, tokenizer: Any, conversations: Sequence[tuple[Any, Any]]
) -> None:
    """Fail unless OpenVINO's tokenizer and chat template agree with those of the Hugging Face
    form.
    """
    import openvino_genai as genai

    other = genai.Tokenizer(str(directory))
    for messages, tools in conversations:
        want = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True
        )
        got = other.apply_chat_template(messages, add_generation_prompt=True, tools=tools or [])
        if got != want:
            raise AssertionError(f"chat templates differ:\n{want}\n----\n{got}")
        ids = other.encode(want, add_special_tokens=False).input_ids.data[0].tolist()
        if ids != tokenizer.encode(want, add_special_tokens=False):
            raise AssertionError(f"token ids differ for:\n{want}")
        if other.decode(ids, skip_special_tokens=False) != want:
            raise AssertionError(f"decoding differs for:\n{want}")


def sizes(home: Path) -> dict[str, int]:
    """The size in bytes of every shipped file."""
    return {
        str(path.relative_to(home)): path.stat().st_size
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md")
    }
