"""Real vLLM: the model's own sampling defaults, what requests ask beyond neutral sampling, and
prompts that are the same whatever their length.
"""

from typing import Any

import msgspec
import pytest
import pytest_asyncio

from penstock.engines.vllm.engine import VLLMEngine
from penstock.errors import RequestError, UnsupportedError
from penstock.openai.parameters.body import parse_body
from penstock.openai.requests import ChatBody, CompletionBody
from penstock.testing import answer
from penstock.types import ChatRequest, Sampling, StructuredOutput

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.asyncio(loop_scope="module"),
]

TICKET = "My Solara 77 arrived broken and nobody answers. I want my money back!"
OPTIONS = {
    "override_generation_config": {"temperature": 0.0, "max_new_tokens": 6},
    "return_tokens_as_token_ids": True,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    engine = VLLMEngine("demo", engine_kwargs=OPTIONS)
    await engine.start()
    yield engine
    await engine.stop()


def chat(**given: Any) -> ChatRequest:
    body = {"messages": [{"role": "user", "content": TICKET}], **given}
    return parse_body(ChatBody, body).request(stream=False)


def completion(**given: Any):
    (made,) = parse_body(CompletionBody, {"prompt": TICKET, **given}).requests(stream=False)
    return made


async def test_what_a_request_leaves_out_has_the_models_defaults(engine):
    greedy = (await answer(engine, chat(temperature=0))).texts
    left_out = await answer(engine, chat())
    assert left_out.texts == greedy
    assert left_out.usage.completion_tokens == 6
    assert (await answer(engine, chat(max_tokens=50))).usage.completion_tokens == 6
    hot = [await answer(engine, chat(temperature=2.0, seed=seed)) for seed in range(4)]
    assert any(one.texts != greedy for one in hot)


async def test_an_echo_has_the_log_probabilities_of_the_prompt(engine):
    asked = completion(echo=True, logprobs=1, max_tokens=2, ignore_eos=True)
    echoed = await answer(engine, asked)
    alone = await answer(engine, completion(prompt_logprobs=1, max_tokens=2))
    prompt = alone.prompt_logprobs[0]
    assert prompt[0].logprob is None
    assert echoed.logprobs[0][0].logprob is None
    assert [token.logprob for token in echoed.logprobs[0][1 : len(prompt)]] == pytest.approx(
        [token.logprob for token in prompt[1:]], abs=1e-3
    )
    assert len(echoed.logprobs[0]) == len(prompt) + 2
    assert echoed.texts[0].startswith(TICKET)
    assert all(token.token.startswith("token_id:") for token in echoed.logprobs[0])


async def test_biases_and_allowed_tokens_steer(engine):
    only = await answer(
        engine, completion(allowed_token_ids=[5], max_tokens=3, return_token_ids=True)
    )
    assert only.token_ids == {0: [5, 5, 5]}
    assert only.prompt_token_ids
    forced = completion(logit_bias={"7": 100}, max_tokens=2, return_token_ids=True)
    assert (await answer(engine, forced)).token_ids == {0: [7, 7]}


async def test_what_follows_a_trigger_is_held(engine):
    spec = '{"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"]}'
    structured = StructuredOutput("json_schema", spec, triggers=("category",))
    sampling = Sampling(temperature=0.0, max_tokens=40, structured=structured)
    asked = msgspec.structs.replace(chat(), sampling=sampling)
    text = (await answer(engine, asked)).texts[0]
    before, _, rest = text.partition("category")
    assert before == '{"'
    held = "".join(rest.split())  # as far as it goes in six tokens
    assert len(held) > 4
    assert '{"a":"b"}'.startswith(held)


async def test_a_long_prompt_is_cut_where_the_request_wants_it(engine):
    asked = completion(truncate_prompt_tokens=3, truncation_side="left", max_tokens=1)
    assert (await answer(engine, asked)).usage.prompt_tokens == 3


@pytest.mark.parametrize(
    "given", [{"media_io_kwargs": {"image": {}}}, {"kv_transfer_params": {"a": 1}}]
)
async def test_what_vllm_cannot_do_here_is_refused_by_name(engine, given):
    with pytest.raises(UnsupportedError, match=next(iter(given))):
        await answer(engine, chat(**given))


@pytest.mark.parametrize("name", ["tools", "messages", "conversation", "tokenize"])
async def test_variables_of_a_template_do_not_replace_the_requests_own(engine, name):
    with pytest.raises(RequestError, match=rf"^chat_template_kwargs\.{name}: "):
        await answer(engine, chat(chat_template_kwargs={name: []}))


async def test_ids_beyond_the_vocabulary_are_refused_by_name(engine):
    for given in ({"logit_bias": {"99999": 1}}, {"allowed_token_ids": [99999]}):
        with pytest.raises(RequestError, match="token ids must be from 0"):
            await answer(engine, chat(**given))


@pytest.mark.parametrize("times", [1, 350])
async def test_a_developers_message_is_the_systems_whatever_its_length(engine, times):
    def asked(role: str) -> ChatRequest:
        said = [{"role": role, "content": "Keys: order. " * times}, *chat().messages]
        return msgspec.structs.replace(chat(), messages=said)

    as_developer = await engine.prompt_ids(asked("developer"))
    assert as_developer == await engine.prompt_ids(asked("system"))
