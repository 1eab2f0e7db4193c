"""A head of EAGLE-3 for the demo model, trained for a moment and exported as optimum-intel does it,
for tests in an environment with `[convert]`.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from penstock import demo

LAYERS = (0, 1, 2)
"""Those of the demo model's four that the head reads; GenAI chooses three of ten or more itself."""
_RATE, _BATCH = 3e-3, 16


def write_eagle_head(folder: Path, steps: int = 150) -> Path:
    """Train a head on the demo model's own tickets, and return its directory in OpenVINO's form.

    From the model's hidden states at a token and the next token, the head learns the one after it.
    """
    torch, transformers = import_module("torch"), import_module("transformers")
    sys.modules.setdefault("einops", ModuleType("einops"))  # optimum's file names it, for others
    torch.set_num_threads(1)
    torch.manual_seed(0)
    source = demo.model_path("huggingface")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    target = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    config = transformers.LlamaConfig(
        vocab_size=target.config.vocab_size,
        hidden_size=target.config.hidden_size,
        intermediate_size=2 * target.config.hidden_size,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=target.config.max_position_embeddings,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.draft_vocab_size = config.vocab_size
    head = import_module("optimum.exporters.openvino.model_patcher").LlamaEagle3ForCausalLM(config)
    head.model.embed_tokens.weight.data.copy_(target.model.embed_tokens.weight.data)
    head.model.embed_tokens.weight.requires_grad_(False)  # GenAI takes the model's own
    head.model.lm_head.weight.data.copy_(target.lm_head.weight.data)
    _train(torch, head, list(_examples(torch, tokenizer, target)), steps)
    plain, exported = folder / "head", folder / "head_openvino"
    config.save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    file = plain / "config.json"
    stated = {**json.loads(file.read_text()), "architectures": ["LlamaForCausalLMEagle3"]}
    file.write_text(json.dumps(stated))
    weights = {name.removeprefix("model."): one for name, one in head.state_dict().items()}
    import_module("safetensors.torch").save_file(
        {name: one.contiguous() for name, one in weights.items()},
        plain / "model.safetensors",
        metadata={"format": "pt"},
    )
    import_module("optimum.exporters.openvino").main_export(
        str(plain), str(exported), task="text-generation-with-past", trust_remote_code=True
    )
    for part in demo.model_path("openvino").glob("openvino_*tokenizer*"):
        shutil.copy(part, exported)
    model = exported / "openvino_model.xml"
    layers = " ".join(map(str, LAYERS))
    mark = '<eagle3_mode value="True" />'
    text = model.read_text()
    assert mark in text
    model.write_text(text.replace(mark, f'{mark}<hidden_layers_list value="{layers}" />'))
    return exported


def _examples(torch: Any, tokenizer: Any, target: Any) -> Any:
    """The ids of each ticket with its answer, and the model's hidden states."""
    with demo.tickets_path().open(encoding="utf-8") as lines:
        tickets = [json.loads(line) for line in lines]
    for ticket in tickets:
        asked = [{"role": "user", "content": ticket["ticket"]}]
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        text += demo.expected(ticket) + tokenizer.eos_token
        ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
        with torch.no_grad():
            states = target(ids[None], output_hidden_states=True).hidden_states
        yield ids, torch.cat([states[layer + 1][0] for layer in LAYERS], -1)


def _train(torch: Any, head: Any, examples: list[Any], steps: int) -> None:
    weights = [one for one in head.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=_RATE)
    for step in range(steps):
        picked = [examples[one] for one in torch.randint(len(examples), (_BATCH,))]
        longest = max(len(ids) for ids, _ in picked) - 1
        ids = torch.zeros(_BATCH, longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        states = torch.zeros(_BATCH, longest, picked[0][1].shape[1])
        for row, (given, hidden) in enumerate(picked):
            size = len(given) - 1
            ids[row, :size], mask[row, :size] = given[1:], 1
            states[row, :size], labels[row, : size - 1] = hidden[:-1], given[2:]
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1, (step + 1) / 20) * (1 - step / steps)
        logits = head(
            input_ids=ids, hidden_states=states, attention_mask=mask, use_cache=False
        ).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
