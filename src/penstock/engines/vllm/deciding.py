"""Decisions by vLLM: requests for one token at each place where labels part. Loads without vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from penstock.engines.decisions.prompts import RequestTexts, conversation, texts_of
from penstock.engines.decisions.tokens import Encode, tokenized
from penstock.engines.decisions.trie import Path, Shares, shares
from penstock.engines.side_by_side import all_of
from penstock.engines.tasks import Batches
from penstock.openai.responses import Answers
from penstock.types import ChatRequest, CompletionRequest, DecideRequest, Sampling, Usage

if TYPE_CHECKING:
    from penstock.engines.vllm.prompts import Prompts

MOST_IDS = 128
"""Tokens whose log probabilities vLLM gives in one request."""
MOST_AT_ONCE = 64
"""Requests of one request for decisions that run at once: it may need 100,000."""


Continue = Callable[[CompletionRequest, int], Batches]
"""Continues a prompt, of whose token ids so many are the head's."""


class HeadWithMedia(RequestTexts, frozen=True, kw_only=True):
    """The texts of questions about images and other media. `media` is what vLLM's prompts hold
    beside the head.
    """

    media: dict[str, Any]


async def asked(request: DecideRequest, prompts: Prompts) -> RequestTexts:
    """The texts of a request, with its media: the conversation as vLLM's renderer writes it. Raises
    `PenstockError`, and vLLM's errors.
    """
    messages, continued = conversation(request)
    chat = ChatRequest(
        messages,
        chat_template=request.chat_template,
        chat_template_kwargs=request.chat_template_kwargs,
        continue_final_message=continued,
        add_generation_prompt=not continued,
    )
    written, media = await prompts.written(chat)
    texts = texts_of(written, request)
    if not media:
        return texts
    return HeadWithMedia(texts.head, texts.branches, texts.special_tokens, media=media)


async def generated_shares(
    generate: Continue, texts: RequestTexts, request: DecideRequest, encode: Encode
) -> tuple[list[Shares], Usage]:
    """The shares of each branch's labels. `generate` honours `logprob_token_ids`, and its answers
    count the tokens that stand for media. The model's prefix cache shares the input: the first
    request computes it, the others follow.
    """
    read = tokenized(texts, request.questions, encode)
    head = len(read.ids)
    cached = shown = 0

    async def ask(number: int, place: Path, tokens: Sequence[int]) -> list[float]:
        nonlocal cached, shown
        extra = {"logprob_token_ids": list(tokens)}
        sampling = Sampling(max_tokens=1, temperature=0.0, logprobs=0, extra=extra)
        prompt = [*read.ids, *read.branches[number].stem, *place]
        completion = CompletionRequest(
            prompt, sampling, adapter=request.adapter, stream=False, prompt_token_ids=prompt
        )
        answers = await Answers.of(generate(completion, head))
        cached = max(cached, answers.usage.cached_tokens)
        shown = answers.usage.prompt_tokens - len(prompt)
        (first,) = answers.logprobs[0]
        known = dict(zip(first.top_ids, (value for _, value in first.top), strict=True))
        return [known[token] for token in tokens]

    places = [
        (number, place, parting[start : start + MOST_IDS])
        for number, branch in enumerate(read.branches)
        for place, parting in branch.trie.parting.items()
        for start in range(0, len(parting), MOST_IDS)
    ]
    found = [await ask(*places[0]), *([] for _ in places[1:])]
    left = iter(range(1, len(places)))

    async def ask_on() -> None:
        for one in left:
            found[one] = await ask(*places[one])

    await all_of(ask_on() for _ in places[1 : MOST_AT_ONCE + 1])
    known: list[dict[Path, list[float]]] = [{} for _ in read.branches]
    for (number, place, _), values in zip(places, found, strict=True):
        known[number].setdefault(place, []).extend(values)
    each = [shares(branch.trie, one) for branch, one in zip(read.branches, known, strict=True)]
    return each, Usage(read.size + shown, 0, min(cached, head + shown))
