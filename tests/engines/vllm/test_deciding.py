"""Decisions as requests for one token: how many at once, and what they count."""

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from msgspec.structs import replace

from penstock.engines.decisions import prompts
from penstock.engines.vllm.deciding import (
    MOST_AT_ONCE,
    HeadWithMedia,
    asked,
    generated_shares,
)
from penstock.errors import EngineError
from penstock.types import DecideRequest, Delta, PredicateQuestion, TokenLogprob, Usage

if TYPE_CHECKING:
    from penstock.engines.vllm.prompts import Prompts


class Asked:
    """Says how many requests run at once. With `failing` that one fails, and the others hang, but
    for the first. Its prompts are longer by `shown` tokens than their ids.
    """

    def __init__(self, failing=None, shown=0):
        self.shown = shown
        self.count = self.running = self.most = 0
        self.failing = failing

    async def generate(self, request, head):
        self.count += 1
        number = self.count
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            if number == self.failing:
                raise EngineError("no")
            if number > 1 and self.failing is not None:
                await asyncio.Event().wait()
            tokens = request.sampling.extra["logprob_token_ids"]
            top = tuple((str(token), -float(token)) for token in tokens)
            known = TokenLogprob("", 0.0, top, top_ids=tuple(tokens))
            usage = Usage(len(request.prompt) + self.shown, 1, head + self.shown)
            yield [Delta(logprobs=(known,), finish_reason="stop", usage=usage)]
        finally:
            self.running -= 1


def decisions(model):
    def encode(texts, special_tokens):
        return [list(text.encode()) for text in texts]

    question = PredicateQuestion("Is it so?")
    request = DecideRequest("It is.", tuple(replace(question, name=str(n)) for n in range(200)))
    texts = prompts.asked(request, None)
    return generated_shares(model.generate, texts, request, encode)


async def test_many_questions_are_asked_a_few_at_a_time():
    model = Asked()
    shares, _ = await decisions(model)
    assert (len(shares), model.count, model.most) == (200, 200, MOST_AT_ONCE)


async def test_where_one_fails_the_others_end():
    model = Asked(failing=30)
    with pytest.raises(EngineError):
        await decisions(model)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
    assert model.running == 0
    assert model.count == 1 + MOST_AT_ONCE


async def test_tokens_that_stand_for_images_count_once():
    _, plain = await decisions(Asked())
    _, seen = await decisions(Asked(shown=7))
    assert seen.prompt_tokens == plain.prompt_tokens + 7
    assert seen.cached_tokens == plain.cached_tokens + 7


@pytest.mark.parametrize("continued", [True, False])
async def test_a_conversation_is_rendered_with_the_place_of_its_questions(continued):
    chats = []

    async def written(chat):
        chats.append(chat)
        texts = [part["text"] for message in chat.messages for part in message["content"][1:]]
        return "".join(texts) + ("" if continued else "\nAnswer:"), {"multi_modal_data": 1}

    image = {"type": "image_url", "image_url": {"url": "data:"}}
    role = "assistant" if continued else "user"
    messages = [{"role": role, "content": [image, {"type": "text", "text": "Look."}]}]
    question = PredicateQuestion("" if continued else "Red?")
    request = DecideRequest(messages, (question,), chat_template_kwargs={"a": 1})
    texts = await asked(request, cast("Prompts", SimpleNamespace(written=written)))
    assert isinstance(texts, HeadWithMedia)
    assert (texts.head, texts.media) == ("Look.", {"multi_modal_data": 1})
    assert [branch.text[-12:] for branch in texts.branches] == [
        "" if continued else "Red?\nAnswer:"
    ]
    (chat,) = chats
    assert (chat.continue_final_message, chat.add_generation_prompt) == (continued, not continued)
    assert chat.chat_template_kwargs == {"a": 1}
    assert len(chat.messages[0]["content"]) == 2  # a part of its own may get a line of its own
