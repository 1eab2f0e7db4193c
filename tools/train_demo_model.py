"""Train, convert, check and write the demo model that ships with Penstock.

    pip install -e . torch "transformers>=5,<6" peft "optimum-intel[openvino]" nncf openvino-genai
    python tools/train_demo_model.py                      # everything, into src/penstock/demo
    python tools/train_demo_model.py --quick --out DIR    # a sanity run; its model is useless
    python tools/train_demo_model.py --start DIR          # from these weights: without the first
    stage

The run is seeded and takes one CPU thread. It writes the model in both forms, the adapters, the
tickets and the model card, and measures exact match on held-out data with both runtimes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "src")]
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
from demo_card import card  # noqa: E402
from demo_export import (  # noqa: E402
    check_tokenizer,
    round_to_half,
    run_openvino,
    save_adapter,
    save_huggingface,
    save_openvino,
    sizes,
)
from demo_handwritten import HANDWRITTEN  # noqa: E402
from demo_prompts import PromptMaker, as_objects, render  # noqa: E402
from demo_tickets import TicketMaker  # noqa: E402
from demo_training import (  # noqa: E402
    MAX_LENGTH,
    POLISH_PROMPT_WEIGHT,
    PROMPT_WEIGHT,
    VOCABULARY,
    add_adapter,
    check_template,
    encode,
    fit,
    generate,
    new_model,
    take_weights,
    train_tokenizer,
)
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from penstock.demo import ADAPTERS, FIELDS, expected  # noqa: E402

LIMIT_BYTES = 3_000_000


@dataclass(frozen=True)
class Plan:
    """How much of everything a run does."""

    seed: int = 1
    steps: int = 2400
    polish_steps: int = 1000
    typo_steps: int = 900
    adapter_steps: int = 200
    batch: int = 32
    tokenizer_conversations: int = 3000
    tickets: int = 600
    test_rows: int = 500


QUICK = Plan(
    steps=30,
    polish_steps=10,
    typo_steps=10,
    adapter_steps=10,
    tokenizer_conversations=500,
    tickets=20,
    test_rows=20,
)


@dataclass(frozen=True)
class Stage:
    """A part of the model's training: its data and its rates."""

    name: str
    seed: int
    steps: int
    rate: float
    muon_rate: float
    prompt_weight: float
    typo_rate: float = 0.3


@dataclass(frozen=True)
class Case:
    """A set of prompts with the replies that are right."""

    name: str
    prompts: list[str]
    answers: list[str]
    adapter: str | None = None

    def score(self, replies: list[str]) -> str:
        right = sum(reply == answer for reply, answer in zip(replies, self.answers, strict=True))
        return f"{right} of {len(self.answers)}"


def make_case(
    name: str, maker: PromptMaker, kind: str, rows: int, adapter: str | None = None
) -> Case:
    """Held-out conversations of one kind, each up to its last reply."""
    prompts, answers = [], []
    for _ in range(rows):
        pieces = render(*maker.make(kind, adapter))
        last = max(index for index, (_, is_reply) in enumerate(pieces) if is_reply)
        prompts.append("".join(text for text, _ in pieces[:last]))
        answers.append(pieces[last][0].removesuffix("<|im_end|>"))
    return Case(name, prompts, answers, adapter)


def ticket_case(name: str, rows: list[dict[str, str]], adapter: str | None = None) -> Case:
    """The given tickets as plain prompts."""
    prompts = [
        f"<|im_start|>user\n{row['ticket']}<|im_end|>\n<|im_start|>assistant\n" for row in rows
    ]
    return Case(name, prompts, [expected(row, adapter) for row in rows], adapter)


def make_cases(plan: Plan, tickets: list[dict[str, str]], banned: frozenset[str]) -> list[Case]:
    """Everything that is measured."""
    maker = PromptMaker(plan.seed + 100, "heldout", banned)
    some = plan.test_rows * 2 // 5
    cases = [
        ticket_case("tickets.jsonl", tickets),
        make_case("held-out tickets", maker, "plain", plan.test_rows),
        make_case("held-out, chosen keys", maker, "keys", some),
        make_case("held-out, follow-up turns", maker, "turns", some),
        make_case("held-out, tool call", maker, "tool", some),
        make_case("held-out, named task", maker, "task", some),
        make_case("held-out, repeat the text", maker, "repeat", some),
    ]
    fresh = PromptMaker(plan.seed + 100, "new", banned)
    cases.append(make_case("tickets of wholly new phrases", fresh, "plain", plan.test_rows))
    for adapter in ADAPTERS:
        cases.append(ticket_case(f"tickets.jsonl, adapter {adapter}", tickets, adapter))
        cases.append(
            make_case(
                f"held-out tickets, adapter {adapter}", maker, "plain", plan.test_rows, adapter
            )
        )
    return cases


def make_tickets(plan: Plan, banned: frozenset[str]) -> list[dict[str, str]]:
    """The tickets that ship: held-out language, no ticket twice."""
    maker = TicketMaker(plan.seed + 200, "heldout", banned)
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    while len(rows) < plan.tickets:
        ticket = maker.make()
        if ticket["ticket"] not in seen:
            seen.add(ticket["ticket"])
            rows.append({"id": f"t{len(rows) + 1:04d}", **ticket})
    return rows


def train(plan: Plan, work: Path, start: Path | None = None) -> None:
    """Train tokenizer, model and adapters; save them in Hugging Face form below ``work``.

    With ``start``, the weights found there stand for those of the first stage.
    """
    torch.manual_seed(plan.seed)
    tokenizer = train_tokenizer(plan.seed, plan.tokenizer_conversations)
    check_template(tokenizer, PromptMaker(plan.seed + 1))
    model = new_model(tokenizer)
    if start is not None:
        take_weights(model, tokenizer, start)
    # The later stages care for the replies only; the last one has twice the typos, the commonest
    # cause of mistakes.
    stages = (
        Stage("base", plan.seed, plan.steps, 3e-3, 0.02, PROMPT_WEIGHT),
        Stage("polish", plan.seed + 2, plan.polish_steps, 1.5e-3, 0.01, POLISH_PROMPT_WEIGHT),
        Stage(
            "typos",
            plan.seed + 3,
            plan.typo_steps,
            1.5e-3,
            0.01,
            POLISH_PROMPT_WEIGHT,
            typo_rate=0.6,
        ),
    )
    seconds, products, longest, trained = 0.0, set[str](), 0, 0
    for stage in stages:
        maker = PromptMaker(stage.seed)
        maker.tickets.typo_rate = stage.typo_rate
        conversations = [maker.any() for _ in range(stage.steps * plan.batch)]
        products |= maker.products
        if start is not None and stage is stages[0]:
            continue  # the weights come from it, so its products must not be tested
        samples = [
            encode(tokenizer, *each, prompt_weight=stage.prompt_weight) for each in conversations
        ]
        longest = max(longest, *(len(ids) for ids, _ in samples))
        trained += stage.steps
        seconds += fit(
            model,
            samples,
            rate=stage.rate,
            muon_rate=stage.muon_rate,
            batch=plan.batch,
            seed=plan.seed,
            name=stage.name,
        )
    round_to_half(model)
    save_huggingface(model, tokenizer, work / "model" / "huggingface")
    adapter_seconds = 0.0
    base = {key: value.clone() for key, value in model.state_dict().items()}
    for number, adapter in enumerate(ADAPTERS):
        fresh = new_model(tokenizer)
        fresh.load_state_dict(base)
        wrapped = add_adapter(fresh, plan.seed + number)
        maker = PromptMaker(plan.seed + 10 + number)
        rows = [
            encode(tokenizer, *maker.make("plain", adapter), prompt_weight=POLISH_PROMPT_WEIGHT)
            for _ in range(plan.adapter_steps * plan.batch)
        ]
        adapter_seconds += fit(
            wrapped, rows, rate=4e-3, batch=plan.batch, weight_decay=0.0, name=adapter
        )
        round_to_half(wrapped)
        save_adapter(wrapped, work / "adapters" / adapter)
        products |= maker.products
    every_step = sum(stage.steps for stage in stages)
    facts = {
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "longest": longest,
        "base_minutes": round(seconds / 60),
        "adapter_minutes": round(adapter_seconds / 60),
        "started": start is not None,
        "all_steps": f"{every_step:,}",
        "trained_steps": f"{trained:,}",
        "adapter_steps": plan.adapter_steps,
        "conversations": f"{every_step * plan.batch:,}",
    }
    (work / "run.json").write_text(json.dumps({"facts": facts, "products": sorted(products)}))


def load(work: Path, adapter: str | None) -> Any:
    """Load what was saved in Hugging Face form."""
    model = AutoModelForCausalLM.from_pretrained(
        work / "model" / "huggingface", dtype=torch.float32
    )
    return (
        model
        if adapter is None
        else PeftModel.from_pretrained(model, work / "adapters" / adapter).eval()
    )


def measure(work: Path, tokenizer: Any, cases: list[Case]) -> list[tuple[str, str, str]]:
    """Run every case in both runtimes; print the misses; return the rows of the model card's
    table.
    """
    figures: list[tuple[str, str, str]] = []
    with (work / "misses.txt").open("w", encoding="utf-8") as misses:
        for case in cases:
            reference = generate(load(work, case.adapter), tokenizer, case.prompts)
            replies = {"Hugging Face, 16-bit weights": reference}
            adapter = None if case.adapter is None else work / "adapters" / case.adapter
            for name, precision in (
                ("OpenVINO, f32", "f32"),
                ("OpenVINO, default precision", None),
            ):
                replies[name] = run_openvino(
                    work / "model" / "openvino", case.prompts, adapter=adapter, precision=precision
                )
            for runtime, texts in replies.items():
                same = sum(a == b for a, b in zip(texts, reference, strict=True))
                figures.append((case.name, runtime, case.score(texts)))
                print(
                    f"{case.name:40} {runtime:30} {case.score(texts):>12}  (as Hugging Face:"
                    f" {same})",
                    flush=True,
                )
                for prompt, text, answer in zip(case.prompts, texts, case.answers, strict=True):
                    if text != answer:
                        misses.write(
                            f"== {case.name} / {runtime}\n{prompt}\n-- got\n{text}\n--"
                            f" want\n{answer}\n"
                        )
    return figures


def handwritten(work: Path, tokenizer: Any) -> int:
    """How many of the tickets written by hand are right in every field."""
    rows = [
        dict(zip(("ticket", "category", "priority", "product", "sentiment"), row, strict=True))
        for row in HANDWRITTEN
    ]
    case = ticket_case("handwritten", rows)
    replies = generate(load(work, None), tokenizer, case.prompts)
    with (work / "misses.txt").open("a", encoding="utf-8") as log:
        for row, text, answer in zip(rows, replies, case.answers, strict=True):
            if text != answer:
                log.write(f"== handwritten\n{row['ticket']}\n-- got\n{text}\n-- want\n{answer}\n")
    return sum(text == answer for text, answer in zip(replies, case.answers, strict=True))


def finish(plan: Plan, work: Path) -> None:
    """Convert, check, measure, and write tickets and model card below ``work``."""
    run = json.loads((work / "run.json").read_text())
    banned = frozenset(run["products"])
    tokenizer = AutoTokenizer.from_pretrained(work / "model" / "huggingface")
    save_openvino(work / "model" / "huggingface", work / "model" / "openvino", work / "scratch")
    maker = PromptMaker(plan.seed + 300, "heldout")
    conversations = []
    for kind in [*PromptMaker.KINDS] * 10:
        messages, tools = maker.make(kind)
        conversations += [(messages, tools), (messages[:-1], tools), (as_objects(messages), tools)]
    check_tokenizer(work / "model" / "openvino", tokenizer, conversations)
    tickets = make_tickets(plan, banned)
    with (work / "tickets.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps(
                {"id": row["id"], "ticket": row["ticket"]} | {key: row[key] for key in FIELDS}
            )
            + "\n"
            for row in tickets
        )
    figures = measure(work, tokenizer, make_cases(plan, tickets, banned))
    facts = run["facts"] | {
        "seed": plan.seed,
        "context": MAX_LENGTH,
        "vocabulary": VOCABULARY,
        "tickets": len(tickets),
        "handwritten": len(HANDWRITTEN),
        "handwritten_right": handwritten(work, tokenizer),
    }
    print(f"handwritten: {facts['handwritten_right']} of {facts['handwritten']}")
    (work / "MODEL_CARD.md").write_text(card(facts, figures), encoding="utf-8")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "src" / "penstock" / "demo", help="where to write"
    )
    parser.add_argument("--quick", action="store_true", help="a short sanity run (needs --out)")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--steps", type=int, help="training steps of the model")
    parser.add_argument("--start", type=Path, help="weights to go on from, in Hugging Face form")
    parser.add_argument(
        "--work", type=Path, help="keep the work here; a finished training found here is used"
    )
    options = parser.parse_args()
    if options.quick and options.out == parser.get_default("out"):
        parser.error("--quick makes a model that is no good: give it --out DIR")
    torch.set_num_threads(1)
    plan = replace(QUICK if options.quick else Plan(), seed=options.seed)
    if options.steps:
        plan = replace(plan, steps=options.steps)
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        if not (work / "run.json").exists():
            train(plan, work, options.start)
        finish(plan, work)
        files = sizes(work)
        for name in ("misses.txt", "run.json"):
            files.pop(name, None)
        for name, size in files.items():
            print(f"{size:>10,}  {name}")
        total = sum(files.values())
        print(f"{total:>10,}  in all")
        if total >= LIMIT_BYTES:
            raise SystemExit(f"too big: {total} bytes of {LIMIT_BYTES}")
        options.out.mkdir(parents=True, exist_ok=True)
        for part in ("model", "adapters"):
            shutil.rmtree(options.out / part, ignore_errors=True)
        skip = shutil.ignore_patterns("misses.txt", "run.json")
        shutil.copytree(work, options.out, dirs_exist_ok=True, ignore=skip)


if __name__ == "__main__":
    main()
