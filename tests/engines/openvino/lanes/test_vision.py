"""The contract on a vision-language model with random weights, and what is special about images."""

import asyncio
import os
import signal

import pytest
import pytest_asyncio

from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.errors import EngineStartError, RequestError, UnsupportedError
from penstock.testing import GREEDY, EngineContract, answer, chat_request
from penstock.types import ChatRequest, CompletionRequest, Message, Sampling
from vision_models import bomb, image_file, image_part, picture, vision_model

OPTIONS = {
    "max_num_seqs": 16,
    "deterministic": True,
    "num_threads": 1,
    "kv_cache_memory_bytes": 64 << 20,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return vision_model(tmp_path_factory.mktemp("model"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model):
    engine = OpenVINOEngine(str(model), engine_kwargs=OPTIONS)
    await engine.start()
    yield engine
    await engine.stop()


class TestContract(EngineContract):
    async def kill(self, engine):
        os.kill(engine._process.pid, signal.SIGKILL)
        return True

    async def test_a_bomb_is_refused_before_it_is_decoded(self, engine):
        asked = ChatRequest([{"role": "user", "content": [image_part(bomb())]}], GREEDY)
        with pytest.raises(RequestError, match="1,600,000,000 pixels, more than the 67,108,864"):
            await answer(engine, asked)

    async def test_forms_of_an_image_that_programs_have(self, engine):
        texts = set()
        for image in (
            image_file(1),
            picture(1),
            bytearray(image_file(1)),
            image_part(image_file(1)),
        ):
            part = image if isinstance(image, dict) else {"type": "image", "image": image}
            texts.add((await answer(engine, _asked(part))).texts[0])
        assert len(texts) == 1

    async def test_forms_of_a_file_are_seen_alike(self, engine):
        forms = ("PNG", "BMP", "TIFF")
        answers = [await answer(engine, _asked(image_part(image_file(1, form)))) for form in forms]
        assert len({found.texts[0] for found in answers}) == 1

    async def test_the_prefix_cache_tells_images_apart(self, engine):
        await engine.reset_prefix_cache()
        text = {"type": "text", "text": self.prompt * 3}
        first = await answer(engine, _asked(image_part(image_file(7)), text))
        again = await answer(engine, _asked(image_part(image_file(7)), text))
        other = await answer(engine, _asked(image_part(image_file(8)), text))
        assert first.usage.cached_tokens == other.usage.cached_tokens == 0
        assert again.usage.cached_tokens >= 32
        assert again.texts == first.texts != other.texts

    async def test_a_text_with_the_models_mark_is_refused(self, engine):
        text = {"type": "text", "text": "What is an <image>?"}
        with pytest.raises(RequestError, match=r"1 image: the texts hold '<image>'"):
            await answer(engine, _asked(image_part(image_file(1)), text))
        with pytest.raises(RequestError, match=r"no image: the texts hold '<image>'"):
            await answer(engine, _asked(text))

    async def test_an_answer_about_an_image_is_continued(self, engine):
        messages: list[Message] = [
            {"role": "user", "content": [image_part(image_file(1))]},
            {"role": "assistant", "content": "A ball that is"},
        ]
        asked = ChatRequest(messages, GREEDY, continue_final_message=True, echo=True)
        assert (await answer(engine, asked)).texts[0].startswith("A ball that is")

    async def test_token_ids_that_no_text_gives_are_refused(self, engine):
        ids = await engine.tokenize("what")
        split = [await engine.tokenize(letter) for letter in "what"]
        assert [ids] != split
        with pytest.raises(UnsupportedError, match="token ids only as its tokenizer makes them"):
            await answer(engine, CompletionRequest([i for one in split for i in one], GREEDY))

    async def test_what_needs_the_second_copy_is_refused(self, engine):
        for sampling in (Sampling(logprobs=1), Sampling(logit_bias=((5, 1.0),))):
            with pytest.raises(UnsupportedError, match="openvino"):
                await answer(engine, chat_request(self.prompt, sampling))

    async def test_aborted_requests_leave_no_pixels(self, engine):
        tasks = [
            asyncio.create_task(answer(engine, _asked(image_part(image_file(n, size=(600, 600))))))
            for n in range(24)
        ]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        kept = await asyncio.gather(*tasks[1::2])
        assert all(found.reasons[0] for found in kept)
        assert (await answer(engine, _asked(image_part(image_file(1))))).texts[0]


@pytest.mark.parametrize("name", ["preprocessor_config.json", "openvino_text_embeddings_model.xml"])
async def test_a_directory_that_lacks_a_file_is_refused_by_its_name(tmp_path, name):
    path = vision_model(tmp_path)
    (path / name).unlink()
    with pytest.raises(EngineStartError, match=f"vision-language model without {name}"):
        await OpenVINOEngine(str(path)).start()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt_lookup": True}, "takes no prompt_lookup"),
        ({"draft_model": "other"}, "takes no draft_model"),
        ({"task": "embed"}, "no model for embed"),
    ],
)
async def test_options_that_have_no_meaning_are_refused(model, options, words):
    with pytest.raises(EngineStartError, match=words):
        await OpenVINOEngine(str(model), engine_kwargs=options).start()


def test_what_a_model_reads_is_known_before_it_runs(model):
    assert OpenVINOEngine(str(model)).stated_inputs() == ("text", "image")
    assert OpenVINOEngine("demo").stated_inputs() == ("text",)
    assert OpenVINOEngine("/nowhere").stated_inputs() == ()


def _asked(*parts):
    return ChatRequest([{"role": "user", "content": list(parts)}], GREEDY)
