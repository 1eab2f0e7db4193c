"""Decisions about images by real vLLM, held against transformers."""

from importlib import import_module
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import pytest_asyncio

import penstock
from penstock.engines.base import Capabilities
from penstock.engines.decisions.trie import Trie, shares
from penstock.engines.vllm.engine import VLLMEngine
from penstock.errors import ContextLengthError, RequestError, UnsupportedError
from penstock.llm_config import LLMConfig
from penstock.openai.media.images import data_uri
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.models.local import LocalModel
from penstock.types import ChoiceQuestion, DecideRequest, Option, PredicateQuestion
from torch_models import IMAGE, picture, vision_model
from vision_models import image_part

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.asyncio(loop_scope="module"),
]
OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "max_model_len": 256,
    "block_size": 32,
}
LABELS = ("fox", "dog", "fly", "the dog", "the", "rain")
"""Of which some part behind their first token, and one ends where another goes on."""
WHICH = ChoiceQuestion("", tuple(map(Option, LABELS)), "which")
ASKED = "What is it?"
IMAGE_TOKENS = 8
RED, BLUE = (255, 0, 0), (0, 60, 255)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    vision_model(path)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model):
    engine = VLLMEngine(str(model), engine_kwargs=OPTIONS)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture(scope="module")
def reference(model):
    """Computes the shares of `LABELS` as the answers to `ASKED` about an image, by transformers,
    and the number of tokens read.
    """
    torch, transformers = import_module("torch"), import_module("transformers")
    processor = transformers.AutoProcessor.from_pretrained(model)
    network = transformers.Blip2ForConditionalGeneration.from_pretrained(model).eval()

    def ids(text: str) -> list[int]:
        return list(processor.tokenizer.encode(text, add_special_tokens=False))

    def shares_of(file: bytes):
        stem = ids("\n")  # which the template puts before the answer
        trie = Trie([tuple(ids(f"\n{label}")[len(stem) :]) for label in LABELS])
        image = import_module("PIL.Image").open(BytesIO(file))
        seen = processor.image_processor(image, return_tensors="pt")
        head = [*ids(IMAGE) * IMAGE_TOKENS, *ids(ASKED), *stem]
        logprobs = {}
        for place, tokens in trie.parting.items():
            read = torch.tensor([[*head, *place]])
            with torch.no_grad():
                made = network(input_ids=read, attention_mask=torch.ones_like(read), **seen)
            last = torch.log_softmax(made.logits[0, -1].double(), 0)
            logprobs[place] = last[list(tokens)].tolist()
        return shares(trie, logprobs), len(head)

    return shares_of


def about(file: bytes, text: str = ASKED) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [image_part(file), {"type": "text", "text": text}]}]


@pytest.mark.parametrize("color", [RED, BLUE])
async def test_they_are_those_of_transformers(engine, reference, color):
    file = picture(color)
    found = await engine.decide(DecideRequest(about(file), (WHICH,)))
    expected, tokens = reference(file)
    assert found.items[0].probabilities == pytest.approx(expected.probabilities, abs=1e-4)
    assert found.items[0].mass == pytest.approx(expected.mass, abs=1e-4)
    assert found.usage.prompt_tokens == tokens


async def test_all_questions_share_the_image(engine):
    questions = tuple(PredicateQuestion(f"Is it {n}?", str(n)) for n in range(100))
    found = await engine.decide(DecideRequest(about(picture(RED)), questions))
    assert [sum(one.probabilities) for one in found.items] == pytest.approx([1] * 100, abs=1e-6)
    again = await engine.decide(DecideRequest(about(picture(RED)), questions[7:8]))
    assert again.items[0].probabilities == pytest.approx(found.items[7].probabilities, abs=1e-4)
    other = await engine.decide(DecideRequest(about(picture(BLUE)), questions[7:8]))
    assert other.items[0].probabilities != pytest.approx(found.items[7].probabilities, abs=1e-4)


async def test_a_mark_in_a_question_stands_for_no_image(engine):
    marked = PredicateQuestion(f"Is {IMAGE} red?")
    seen = await engine.decide(DecideRequest(about(picture(RED)), (marked,)))
    plain = await engine.decide(
        DecideRequest(about(picture(RED)), (PredicateQuestion("Is  red?"),))
    )
    assert seen.usage.prompt_tokens <= plain.usage.prompt_tokens + 2
    await engine.check_health()


async def test_texts_alone_and_answers_begun(engine):
    text = DecideRequest([{"role": "user", "content": ASKED}], (WHICH,))
    image = DecideRequest(about(picture(RED)), (WHICH,))
    begun = [*about(picture(RED)), {"role": "assistant", "content": "the "}]
    each = [await engine.decide(one) for one in (text, image, DecideRequest(begun, (WHICH,)))]
    assert len({tuple(one.items[0].probabilities) for one in each}) == 3
    assert each[0].usage.prompt_tokens + IMAGE_TOKENS == each[1].usage.prompt_tokens


async def test_what_cannot_be_asked_is_refused_and_harms_nobody(engine):
    wanted = await engine.decide(DecideRequest(about(picture(RED)), (WHICH,)))
    with pytest.raises(RequestError, match="image"):
        await engine.decide(DecideRequest(about(b"no image"), (WHICH,)))
    two = [image_part(picture(RED)), *about(picture(BLUE))[0]["content"]]
    with pytest.raises(RequestError, match=r"(?i)at most 1 image"):
        await engine.decide(DecideRequest([{"role": "user", "content": two}], (WHICH,)))
    long = PredicateQuestion("Is it so? " * 60)
    for text, question in (("so " * 300, WHICH), (ASKED, long)):
        with pytest.raises(ContextLengthError):
            await engine.decide(DecideRequest(about(picture(RED), text), (question,)))
    again = await engine.decide(DecideRequest(about(picture(RED)), (WHICH,)))
    assert again.items[0].probabilities == pytest.approx(wanted.items[0].probabilities, abs=1e-4)


async def test_over_http_and_in_a_job(engine):
    wanted = await engine.decide(DecideRequest(about(picture(RED)), (WHICH,)))
    expected = pytest.approx(wanted.items[0].probabilities, abs=1e-4)
    rows = [{"photo": picture(color)} for color in (RED, BLUE, RED)] + [{"photo": b"no image"}]
    asked = [{"name": "which", "options": list(LABELS)}]
    result = await penstock.arun(rows, engine=engine, prompt=ASKED, image="photo", decide=asked)
    red, blue, same, bad = (row["which_probabilities"] for row in result.rows())
    assert list(red.values()) == list(same.values()) == expected
    assert list(blue.values()) != expected
    assert bad is None

    loading = {"model_id": "eyes", "model_source": engine.model_source}
    config = LLMConfig.from_dict(
        {"model_loading_config": loading, "llm_engine": "vllm", "engine_kwargs": OPTIONS}
    )
    served = LocalModel(config, engine=engine)
    await served.start()
    content = [
        {"type": "input_image", "image_url": data_uri(picture(RED))},
        {"type": "input_text", "text": ASKED},
    ]
    question = {"type": "choice", "choices": [{"value": label} for label in LABELS]}
    body = {
        "model": "eyes",
        "input": [{"type": "message", "role": "user", "content": content}],
        "questions": [{**question, "instructions": ""}],
    }
    transport = httpx.ASGITransport(app=OpenAiIngress({"eyes": served}))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        answered = (await client.post("/v1/decisions", json=body)).json()
    found = [one["probability"] for one in answered["answers"][0]["probabilities"]]
    assert found == expected


async def test_a_tokenizer_that_writes_conversations_as_tokens_is_refused_by_name(monkeypatch):
    engine = VLLMEngine("demo")
    engine.capabilities = Capabilities(frozenset({"chat", "decide"}), 0, 1)
    running = SimpleNamespace(prompts=SimpleNamespace(text_template=None))
    monkeypatch.setattr(engine, "_alive", lambda: running)
    with pytest.raises(UnsupportedError, match="writes conversations as tokens"):
        await engine.decide(DecideRequest("It is.", (PredicateQuestion("Is it so?"),)))
