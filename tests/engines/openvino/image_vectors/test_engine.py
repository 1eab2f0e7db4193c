"""Vectors of images and texts on the embedded engine, against GenAI's own pipeline."""

import asyncio
import json
import shutil

import numpy as np
import openvino as ov
import openvino_genai as genai
import pytest
import pytest_asyncio
from make_image_embedding_model import IMAGE, PROMPTS, SPECIAL
from PIL import Image

from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.model.vision_files import (
    TOKENIZER,
    linked,
    write_tokenizer_that_adds_none,
)
from penstock.errors import (
    ContextLengthError,
    EngineStartError,
    RequestError,
    UnsupportedError,
)
from penstock.testing import ImageVectorContract
from penstock.types import ChatRequest, EmbeddingRequest
from vision_models import bomb, image_embedding_model, image_file, image_part, picture, vision_model

pytestmark = pytest.mark.asyncio(loop_scope="module")
OPTIONS = {"inference_precision": "f32", "num_threads": 2}
END = SPECIAL[0]
SIZES = ((64, 64), (48, 40), (300, 90), (20, 400), (1, 1), (199, 1))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return image_embedding_model(tmp_path_factory.mktemp("model"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model):
    engine = OpenVINOEngine(str(model), engine_kwargs=OPTIONS)
    await engine.start()
    yield engine
    await engine.stop()


SCALED = {(48, 40): (64, 32), (300, 90): (224, 64), (20, 400): (32, 384)}
SCALED |= {(1, 1): (32, 32), (199, 1): (480, 32)}


class TestContract(ImageVectorContract):
    pass


@pytest.fixture(scope="module")
def bare(model):
    with linked(model, {TOKENIZER}) as plain:
        write_tokenizer_that_adds_none(model, plain)
        assert genai.Tokenizer(plain).encode("a").input_ids.shape[1] == 1
        pipeline = genai.EmbeddingPipeline(
            plain, "CPU", INFERENCE_PRECISION_HINT="f32", INFERENCE_NUM_THREADS=2
        )

    def embed(text, *images):
        tensors = [ov.Tensor(np.array(image)) for image in images]
        return pipeline.embed(f"{text}{END}", images=tensors).embeddings.data[0]

    return embed


def turns(text, system=PROMPTS["document"]):
    before = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{before}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def chat(*parts, **options):
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return ChatRequest([{"role": "user", "content": content}], **options)


async def vectors(engine, *inputs, **options):
    return (await engine.embeddings(EmbeddingRequest(inputs, **options))).vectors


@pytest.mark.parametrize("size", SIZES)
async def test_vectors_of_images_are_those_of_the_bare_pipeline(engine, bare, size):
    part, image = image_part(image_file(1, size=size)), picture(1, size)
    # GenAI leaves pixels out where it makes an image smaller.
    image = image.resize(SCALED.get(size, size), Image.Resampling.BICUBIC)
    alone, with_text = await vectors(engine, chat(part), chat(part, "a cat"))
    assert alone == pytest.approx(bare(turns(IMAGE), image).tolist(), abs=1e-5)
    assert with_text == pytest.approx(bare(turns(f"{IMAGE}a cat"), image).tolist(), abs=1e-5)


async def test_texts_in_a_batch_are_those_of_the_bare_pipeline(engine, bare):
    texts = ["a", "a cat", "a dog and a cat " * 12]
    photo = chat(image_part(image_file(2)))
    found = await vectors(engine, *texts, photo, *texts)
    for text, first, second in zip(texts, found, found[4:], strict=False):
        wanted = pytest.approx(bare(turns(text)).tolist(), abs=1e-5)
        assert [first, second] == [wanted] * 2


async def test_an_instruction_is_the_system_message_of_a_conversation_without_one(engine, bare):
    (found,) = await vectors(engine, "a cat", input_type="query")
    assert found == pytest.approx(bare(turns("a cat", PROMPTS["query"])).tolist(), abs=1e-5)
    own = {"role": "system", "content": "Be brief."}
    conversation = ChatRequest([own, {"role": "user", "content": "a cat"}])
    (found,) = await vectors(engine, conversation, input_type="query")
    assert found == pytest.approx(bare(turns("a cat", "Be brief.")).tolist(), abs=1e-5)


async def test_a_conversation_may_end_otherwise(engine, bare):
    part, image = image_part(image_file(1, size=(64, 64))), picture(1, (64, 64))
    (plain,) = await vectors(engine, chat(part, add_generation_prompt=False))
    wanted = turns(IMAGE).removesuffix("<|im_start|>assistant\n")
    assert plain == pytest.approx(bare(wanted, image).tolist(), abs=1e-5)
    begun = ChatRequest(
        [*chat(part).messages, {"role": "assistant", "content": "A"}], continue_final_message=True
    )
    (found,) = await vectors(engine, begun)
    assert found == pytest.approx(bare(f"{turns(IMAGE)}A", image).tolist(), abs=1e-5)


async def test_options_without_instructions_and_without_length_one(model, bare):
    options = {**OPTIONS, "document_instruction": "", "embedding_normalize": False}
    engine = OpenVINOEngine(str(model), engine_kwargs=options)
    await engine.start()
    (found,) = await vectors(engine, "a cat", input_type="document")
    await engine.stop()
    assert np.linalg.norm(found) != pytest.approx(1, abs=1e-2)
    length_one = found / np.linalg.norm(found)
    assert length_one.tolist() == pytest.approx(bare(turns("a cat", "")).tolist(), abs=1e-5)


async def test_dimensions_cut_a_vector(engine):
    photo = chat(image_part(image_file(1)))
    ((whole,), (some,)) = [await vectors(engine, photo, dimensions=n) for n in (None, 16)]
    cut = np.array(whole[:16])
    assert some == pytest.approx((cut / np.linalg.norm(cut)).tolist(), abs=1e-5)


async def test_tokens_are_those_that_the_model_reads(engine):
    for size, tokens in zip(SIZES, (4, 2, 14, 12, 1, 15), strict=True):
        photo = chat(image_part(image_file(1, size=size)))
        with_image, without = [
            (await engine.embeddings(EmbeddingRequest([one]))).usage.prompt_tokens
            for one in (photo, "a")
        ]
        assert with_image - without == tokens + 2 - 1  # and without the text's one token


BAD_IMAGES = [
    (bomb(), "1,600,000,000 pixels"),
    (image_file(1)[:200], "cut off"),
    (image_file(1, size=(402, 2)), "too narrow"),
    (b"no image", "no image of a known form"),
]


@pytest.mark.parametrize(("data", "words"), BAD_IMAGES)
async def test_bad_images_are_refused(engine, data, words):
    with pytest.raises(RequestError, match=words):
        await vectors(engine, "a", chat(image_part(data)))
    assert len(await vectors(engine, "a")) == 1


MARKS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", IMAGE, "<ov_genai_image_0>")


@pytest.mark.parametrize("text", MARKS)
async def test_a_text_that_stands_for_an_image_is_refused(engine, text):
    for given in (text, chat(image_part(image_file(1)), text), chat(text)):
        with pytest.raises(RequestError, match=r"stands for (an image|one)"):
            await vectors(engine, given)
    assert len(await vectors(engine, "a")) == 1


async def test_what_it_does_not_take_is_refused_by_name(engine):
    for given, words in (
        ([[5, 6]], "no token ids"),
        ([""], "an input is empty"),
        ([ChatRequest([])], "an input is empty"),
        ([], "nothing to embed"),
    ):
        with pytest.raises(RequestError, match=words):
            await vectors(engine, *given)
    with pytest.raises(UnsupportedError, match="not multi ones"):
        await vectors(engine, "a", vectors="multi")
    with pytest.raises(ContextLengthError):
        await vectors(engine, "word " * 2000)
    many = [image_part(image_file(n)) for n in range(17)]
    with pytest.raises(RequestError, match="max_images is 16"):
        await vectors(engine, chat(*many))
    video = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA=="}}
    with pytest.raises(UnsupportedError, match="no 'video_url'"):
        await vectors(engine, chat(video))


async def test_calls_that_are_given_up_harm_no_others(engine):
    photo = chat(image_part(image_file(1)))
    wanted = await vectors(engine, photo)
    calls = [asyncio.create_task(vectors(engine, photo, "a")) for _ in range(12)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    left = await asyncio.gather(*calls[1::2])
    for first, _ in left:
        assert first == pytest.approx(wanted[0], abs=1e-5)


async def test_a_model_that_embeds_and_one_that_answers_are_told_apart(model, tmp_path):
    answering = vision_model(tmp_path)
    with pytest.raises(EngineStartError, match="vision-language model, and no model for embed"):
        await OpenVINOEngine(str(answering), engine_kwargs={**OPTIONS, "task": "embed"}).start()
    for options, words in (
        ({"prompt_lookup": True}, "an embedding model that sees, which takes no prompt_lookup"),
        ({"voices": {"a": "b"}}, "takes no voices"),
    ):
        with pytest.raises(EngineStartError, match=words):
            await OpenVINOEngine(str(model), engine_kwargs={**OPTIONS, **options}).start()


async def test_without_a_chat_template_one_must_be_given(model, tmp_path):
    bare = tmp_path / "model"
    shutil.copytree(model, bare)
    for file in ("chat_template.jinja", "openvino_tokenizer.xml", "tokenizer_config.json"):
        if not (bare / file).exists():
            continue
        text = (bare / file).read_text()
        if file.endswith(".jinja"):
            (bare / file).unlink()
        elif file.endswith(".json"):
            kept = {k: v for k, v in json.loads(text).items() if k != "chat_template"}
            (bare / file).write_text(json.dumps(kept))
        else:
            start = text.find("<chat_template")
            if start >= 0:
                end = text.index("/>", start) + 2
                (bare / file).write_text(text[:start] + text[end:])
    with pytest.raises(EngineStartError, match="has no chat template"):
        await OpenVINOEngine(str(bare), engine_kwargs=OPTIONS).start()
