"""Sound and pictures: a Whisper and a BLIP-2 with random weights."""

import base64
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from penstock.engines.vllm.engine import VLLMEngine
from penstock.errors import RequestError, UnsupportedError
from penstock.llm_config import LLMConfig
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.models.local import LocalModel
from penstock.testing import answer, chat_request
from penstock.types import ChatRequest, EmbeddingRequest, Sampling, TranscriptionRequest
from torch_models import END, SPEECH_COMMANDS, picture, recording, speech_model, vision_model

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
}
GREEDY = Sampling(temperature=0.0, max_tokens=8)


async def test_speech(tmp_path):
    model, tokenizer = speech_model(tmp_path)
    commands = tokenizer.convert_tokens_to_ids([END, *SPEECH_COMMANDS])
    # So that it says words: vLLM suppresses nothing.
    model.model.decoder.embed_tokens.weight.data[commands] *= 0.05
    model.save_pretrained(tmp_path)
    engine = VLLMEngine(str(tmp_path), engine_kwargs=OPTIONS)
    await engine.start()
    try:
        assert "transcriptions" in engine.capabilities.tasks
        audio = recording()
        made = await engine.transcriptions(
            TranscriptionRequest(audio, language="en", max_tokens=12)
        )
        assert made.text
        again = await engine.transcriptions(
            TranscriptionRequest(audio, language="en", max_tokens=12)
        )
        assert again.text == made.text
        shorter = await engine.transcriptions(
            TranscriptionRequest(audio, language="en", max_tokens=4)
        )
        assert made.text.startswith(shorter.text)
        assert len(shorter.text) < len(made.text)
        translated = await engine.transcriptions(
            TranscriptionRequest(audio, language="de", task="translate", max_tokens=12)
        )
        assert translated.text
        with pytest.raises(RequestError):
            await engine.transcriptions(TranscriptionRequest(b"no sound at all", language="en"))
        with pytest.raises(RequestError) as unknown:
            await engine.transcriptions(TranscriptionRequest(audio, language="xx", max_tokens=4))
        assert unknown.value.param == "language"  # by which a job knows an option of its own
        with pytest.raises(UnsupportedError, match="embeddings"):
            await engine.embeddings(EmbeddingRequest(["a"]))
        await over_http(engine, audio, made.text)
    finally:
        await engine.stop()


async def over_http(engine, audio, text):
    loading = {"model_id": "speech", "model_source": engine.model_source}
    config = LLMConfig.from_dict(
        {"model_loading_config": loading, "llm_engine": "vllm", "engine_kwargs": OPTIONS}
    )
    served = LocalModel(config, engine=engine)
    await served.start()
    transport = httpx.ASGITransport(app=OpenAiIngress({"speech": served}))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        form = {"model": "speech", "language": "en", "max_tokens": "12"}
        answer = await client.post(
            "/v1/audio/transcriptions", data=form, files={"file": ("a.wav", audio)}
        )
        assert answer.json()["text"] == text


@pytest.mark.parametrize(
    ("options", "media"),
    [
        ({"limit_mm_per_prompt": {"image": 1}}, ("image",)),
        ({"limit_mm_per_prompt": {"image": 0}}, ()),
        ({"language_model_only": True}, ()),
    ],
)
def test_what_a_limit_rules_out_is_no_input(tmp_path, options, media):
    from vllm.engine.arg_utils import AsyncEngineArgs

    from penstock.engines.vllm.front import media_of

    vision_model(tmp_path)
    given = AsyncEngineArgs(model=str(tmp_path), dtype="float32", **options)
    assert media_of(given.create_model_config()) == media


async def test_pictures(tmp_path):
    vision_model(tmp_path)
    engine = VLLMEngine(
        str(tmp_path), engine_kwargs={**OPTIONS, "limit_mm_per_prompt": {"image": 1}}
    )
    await engine.start()
    try:
        plain = await answer(engine, chat_request("What is it?", GREEDY))
        red = await answer(engine, showing((255, 0, 0)))
        assert red.usage.prompt_tokens == plain.usage.prompt_tokens + 8  # what a picture takes
        assert red.texts[0]
        assert (await answer(engine, showing((255, 0, 0)))).texts == red.texts
        assert (await answer(engine, showing((0, 60, 255)))).texts != red.texts
        for wrong in (b"no picture", b""):
            with pytest.raises(RequestError):
                await answer(engine, asked_about(wrong))
        with pytest.raises(RequestError, match=r"(?i)at most 1 image"):
            await answer(engine, asked_about(picture((0, 0, 0)), picture((9, 9, 9))))
        await engine.check_health()
        await the_tokens_of_vllms_server(engine)
    finally:
        await engine.stop()


async def the_tokens_of_vllms_server(engine):
    asked = Sampling(temperature=0.0, max_tokens=1, extra={"return_token_ids": True})
    transport = httpx.ASGITransport(app=engine.build_asgi_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        for request in (chat_request("What is it?", asked), showing((9, 9, 9))):
            body = {
                "model": engine.model_source,
                "messages": request.messages,
                "max_tokens": 1,
                "return_token_ids": True,
            }
            theirs = (await client.post("/v1/chat/completions", json=body)).json()
            ours = await answer(engine, replace(request, sampling=asked))
            assert list(ours.prompt_token_ids or ()) == theirs["prompt_token_ids"]


def showing(color: tuple[int, int, int]) -> ChatRequest:
    return asked_about(picture(color))


def asked_about(*files: bytes) -> ChatRequest:
    parts: list[dict[str, Any]] = [
        {
            "type": "image_url",
            "image_url": {"url": f"data:image/png;base64,{base64.b64encode(file).decode()}"},
        }
        for file in files
    ]
    return ChatRequest(
        [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}], GREEDY
    )
