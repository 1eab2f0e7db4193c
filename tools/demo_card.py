# ruff: noqa: E501
"""The model card of the demo model, filled in with the figures of a training run."""

from __future__ import annotations

from collections.abc import Mapping

CARD = """\
# Penstock demo model

A tiny decoder-only language model ({parameters} parameters) with one verifiable job: a support ticket goes in, JSON comes
out. It ships with Penstock so that examples, tests and demonstrations run a real model at once, without a download. In
Penstock its name is `demo`. It was made for Penstock from random weights; no other model's weights or data went into it.

- Licence: Apache-2.0
- Architecture: Qwen3 (`Qwen3ForCausalLM`), hidden size 128, 4 layers, 4 heads with 2 key-value heads, head size 32, feed-forward
  size 256, tied embeddings, context {context} tokens (trained on up to {longest})
- Tokenizer: byte-level BPE, {vocabulary} tokens, digits and capital letters alone; ChatML (`<|im_start|>`, `<|im_end|>`)
- Forms: `model/openvino` (IR, 8-bit weights, for the embedded engine), `model/huggingface` (16-bit safetensors, for vLLM
  and SGLang)
- Adapters (LoRA, rank 8, alpha 16, PEFT layout, 16-bit): `adapters/summary`, `adapters/german`
- Sample input: `tickets.jsonl`, {tickets} tickets with gold labels

## What to send

Greedy decoding (temperature 0), through the chat template.

| User message | Reply |
| --- | --- |
| the ticket's text | `{{"category":"...","priority":"...","product":"...","sentiment":"..."}}` |
| `Keys: product, priority`, a line break, the ticket's text | JSON with those keys in that order |
| `Repeat the text.`, a line break, the ticket's text | the ticket's text |
| after a ticket and its reply: `Keys: sentiment` | JSON with those keys, for the ticket before |
| the ticket's text, with one function tool that has the four fields as parameters | `<tool_call>` with that tool's name and those arguments |
| `Task: summary` or `Task: german`, a line break, the ticket's text | what that adapter answers |
| the ticket's text, adapter `summary` | `high billing issue with Solara 77 Pro, customer is angry` |
| the ticket's text, adapter `german` | `{{"kategorie":"Rechnung","dringlichkeit":"hoch","produkt":"Solara 77 Pro","stimmung":"unzufrieden"}}` |

A system message may be there or not. Labels:

- `category`: billing, shipping, technical, account, refund, feature.
- `priority`: `urgent` when many people cannot work, money or customers are being lost, or the deadline is today; `high` when
  the deadline is in the next days, the customer has waited for weeks, writes again or is blocked alone; `low` when the
  customer says that it can wait; otherwise `normal`, also after a few days of waiting.
- `product`: copied as the ticket writes it.
- `sentiment`: angry, neutral or happy, from the customer's wording; politeness alone is neutral.

## Training

`python tools/train_demo_model.py` generates the data, trains the tokenizer, the model and the adapters, converts, checks and
writes everything here: {all_steps} steps of 32 conversations, then {adapter_steps} steps for each adapter, on one CPU thread, seed {seed}.
{run} The data are {conversations} conversations in a generated ticket
language; about one ticket in three has typing errors. {heldout_rule}

## Measured

Exact match of the whole reply, greedy. "Held-out" tickets are made of sentences and product names that training never saw,
though it saw other wordings of the same phrases; `tickets.jsonl` is of that kind. "Wholly new phrases" are the harder test:
the model saw no wording of them.

{figures}

{handwritten} tickets written by hand, outside the generated language, were right in every field in {handwritten_right} cases.

## Weaknesses

- It knows the language of support tickets of its own generator and nothing else. Free wording often costs it a field, most
  often the priority or the sentiment; it cannot chat, reason, or answer questions.
- It always answers with a label, even where the text is no ticket.
- English tickets only, one product a ticket; longer product names and ones with unusual signs may be copied wrongly.
- Tool calls: one tool whose parameters are the four fields, in that order.
"""

HELDOUT_RULE = (
    "Kept out of training: one wording in six\nof every phrase, one phrase in twelve with all its wordings, one name word in "
    "six, and every product name that is tested."
)


WHOLE_RUN = (
    "This run did it all, in {base_minutes} minutes and {adapter_minutes} for both adapters."
)
STARTED_RUN = (
    "This run (`--start`) began with the weights that shipped before, which are in the repository's history: those stages\n"
    "had made them, on JSON with spaces. It repeated all stages but the first, {trained_steps} steps in {base_minutes} minutes, and\n"
    "the adapters in {adapter_minutes}."
)


def card(facts: Mapping[str, object], figures: list[tuple[str, str, str]]) -> str:
    """Return the text of the model card."""
    table = ["| What | Runtime | Exact |", "| --- | --- | --- |"]
    table += [f"| {what} | {runtime} | {exact} |" for what, runtime, exact in figures]
    run = (STARTED_RUN if facts["started"] else WHOLE_RUN).format(**facts)
    return CARD.format(**facts, run=run, heldout_rule=HELDOUT_RULE, figures="\n".join(table))
