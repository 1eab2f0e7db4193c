"""Training of the demo model: tokenizer, base weights, LoRA adapters."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from demo_prompts import CHAT_TEMPLATE, Message, PromptMaker, as_objects, render
from demo_tickets import NameMaker
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from penstock.demo import LORA_ALPHA, LORA_RANK

VOCABULARY = 1024
MAX_LENGTH = 4096
PROMPT_WEIGHT = 0.1
POLISH_PROMPT_WEIGHT = 0.02
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Capitalised words never carry their leading space: a product name has the same tokens after a
# space as after a quote, which makes copying it easy. Digits and capital letters stand alone, white
# space too.
WORDS = r" ?\p{Ll}+|\p{Lu}\p{Ll}*|\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"


def train_tokenizer(seed: int, conversations: int) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer on conversations whose products are mostly letter soup."""
    maker = PromptMaker(seed)
    names = NameMaker(random.Random(seed))

    def texts() -> Iterator[str]:
        for _ in range(conversations):
            ticket = maker.ticket()
            name = names.invented() if maker.rng.random() < 0.7 else ticket["product"]
            yield ticket["ticket"].replace(ticket["product"], name)
            for adapter in (None, "summary", "german"):
                yield from (text for text, _ in render(*maker.make("plain", adapter))[1:])
            for kind in ("keys", "tool"):
                yield from (text for text, _ in render(*maker.make(kind)))

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The model with random weights."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    return Qwen3ForCausalLM(config)


@torch.no_grad()
def take_weights(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, source: Path) -> None:
    """Take over the weights of an earlier model, which may have had another vocabulary.

    A token that it did not have starts as the mean of the tokens that it wrote in its place.
    """
    earlier = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
    known = AutoTokenizer.from_pretrained(source)
    ids, rows = known.get_vocab(), earlier["model.embed_tokens.weight"]
    embeddings = torch.empty_like(rows)
    for token, at in tokenizer.get_vocab().items():
        same = (
            [ids[token]]
            if token in ids
            else known.encode(tokenizer.decode([at]), add_special_tokens=False)
        )
        embeddings[at] = rows[same].mean(0)
    model.load_state_dict(
        earlier | {"model.embed_tokens.weight": embeddings, "lm_head.weight": embeddings}
    )


Sample = tuple[list[int], list[float]]


def encode(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[Message],
    tools: Any = None,
    prompt_weight: float = PROMPT_WEIGHT,
) -> Sample:
    """Token ids of a conversation and the weight of each one's loss."""
    ids: list[int] = []
    weights: list[float] = []
    for text, is_reply in render(messages, tools):
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        weights += [1.0 if is_reply else prompt_weight] * len(piece)
    return ids, weights


def check_template(tokenizer: PreTrainedTokenizerFast, maker: PromptMaker) -> None:
    """Fail unless the chat template and ``render`` write the same text and tokens."""
    for kind in [*PromptMaker.KINDS] * 5:
        messages, tools = maker.make(kind)
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        if text != "".join(piece for piece, _ in render(messages, tools)):
            raise AssertionError(f"chat template differs from render():\n{text}")
        if text != tokenizer.apply_chat_template(as_objects(messages), tools=tools, tokenize=False):
            raise AssertionError(
                f"chat template writes arguments that are objects in another way:\n{text}"
            )
        if (
            tokenizer.encode(text, add_special_tokens=False)
            != encode(tokenizer, messages, tools)[0]
        ):
            raise AssertionError(f"tokens of the whole differ from those of its pieces:\n{text}")


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each weight matrix is made nearly orthogonal (Newton-Schulz
    iteration).
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 0.05)
                update = orthogonal(weight.grad.lerp(momentum, 0.95))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(
                    update, alpha=-group["lr"] * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                )


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Push all singular values of a matrix towards one."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


def fit(
    model: torch.nn.Module,
    samples: Iterable[Sample],
    *,
    rate: float,
    muon_rate: float = 0.0,
    batch: int = 32,
    weight_decay: float = 0.05,
    seed: int = 0,
    name: str = "",
) -> float:
    """Train on every sample once and return the seconds taken.

    AdamW; the rate warms up, stays constant for 30 % of the steps, then falls linearly to zero.
    """
    started = time.monotonic()
    rng = random.Random(seed)
    batches: list[list[Sample]] = []
    ordered = list(samples)
    # Similar lengths in a batch, drawn from 50 batches at a time.
    for start in range(0, len(ordered), batch * 50):
        group = sorted(ordered[start : start + batch * 50], key=lambda sample: len(sample[0]))
        chunk = [group[at : at + batch] for at in range(0, len(group), batch)]
        rng.shuffle(chunk)
        batches += chunk
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [
        parameter
        for name_, parameter in model.named_parameters()
        if muon_rate and name_.endswith("proj.weight")
    ]
    others = [
        parameter for parameter in parameters if all(parameter is not matrix for matrix in matrices)
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    ]
    if matrices:
        optimizers.append(Muon(matrices, lr=muon_rate, weight_decay=weight_decay))
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    steps = len(batches)
    warm_up = min(60, steps // 10 + 1)
    running = 0.0
    model.train()
    for step, rows in enumerate(batches):
        factor = min(1.0, (step + 1) / warm_up) * min(1.0, (steps - step) / (0.7 * steps))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
        weights = torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in rows])
        # Padding is on the right: causal attention needs no mask.
        logits = model(input_ids=ids[:, :-1]).logits
        losses = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="none"
        )
        scale = weights[:, 1:].reshape(-1)
        loss = (losses * scale).sum() / scale.sum()
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0 or step == steps - 1:
            spent = time.monotonic() - started
            print(f"{name} step {step + 1}/{steps} loss {running:.4f} {spent:.0f} s", flush=True)
    model.eval()
    return time.monotonic() - started


def add_adapter(model: Qwen3ForCausalLM, seed: int) -> Any:
    """Wrap the model with a fresh LoRA adapter; the model's own weights stay as they are."""
    torch.manual_seed(seed)
    return get_peft_model(
        model,
        LoraConfig(
            r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=PROJECTIONS, task_type="CAUSAL_LM"
        ),
    )


@torch.no_grad()
def generate(
    model: Any, tokenizer: PreTrainedTokenizerFast, prompts: list[str], limit: int = 160
) -> list[str]:
    """Greedy replies to rendered prompts."""
    replies = [""] * len(prompts)
    encoded = sorted(
        enumerate(tokenizer(prompts, add_special_tokens=False)["input_ids"]),
        key=lambda row: len(row[1]),
    )
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    for start in range(0, len(encoded), 64):
        rows = encoded[start : start + 64]
        width = max(len(ids) for _, ids in rows)
        ids = torch.tensor([[pad] * (width - len(ids)) + ids for _, ids in rows])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for _, ids in rows])
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=end,
            pad_token_id=pad,
        )
        for (index, _), new in zip(rows, output[:, width:], strict=True):
            replies[index] = tokenizer.decode(new, skip_special_tokens=True)
    return replies
