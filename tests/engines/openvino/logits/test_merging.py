"""Texts with images, read by the second copy, held against GenAI's pipeline that generates."""

import hashlib

import numpy as np
import openvino as ov
import openvino_genai as genai
import pytest
from openvino import opset13 as ops

from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.lanes.vision import Vision
from penstock.engines.openvino.logits.model import EXACT, LogitModel, Tree, log_softmax
from penstock.engines.openvino.model.files import LANGUAGE_MODEL, read_config
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.openvino.pipeline import AS_IS, Tokenizer
from penstock.engines.process import Submit
from penstock.engines.templates.chat_template import TAGS
from penstock.errors import ContextLengthError, RequestError, UnsupportedError
from penstock.types import ChoiceQuestion, DecideRequest, Option, PredicateQuestion, Sampling
from vision_models import bomb, image_file, image_part, vision_model

QUESTIONS = (
    ChoiceQuestion("Which?", tuple(map(Option, ("a cat", "a dog", "a red ball")))),
    PredicateQuestion("Is it red?"),
)
HEADS = (("USER: {}\nwhat is it? ASSISTANT:", (1,)), ("USER: {}\n and {}\n: what?", (2, 3)))
MARKS = {"vision": "<image>", "video": "<|vision_start|><|image_pad|><|vision_end|>"}
TOKENS = {"vision": 16 + 1, "video": 6 + 2}  # with a line end, and with those around them
TOKENS_OF_IMAGES = {"vision": ("<ov_genai_image_0>",), "video": ("<|image_pad|>", "<|video_pad|>")}


@pytest.fixture(scope="module", params=MARKS)
def path(request, tmp_path_factory):
    return vision_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def model(path):
    return LogitModel(str(path / LANGUAGE_MODEL), OpenVINOOptions())


@pytest.fixture(scope="module")
def pipeline(path):
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    made = genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", EXACT)
    made.get_tokenizer().set_chat_template(AS_IS)
    return made


def generated(pipeline, text, images):
    """The likeliest next token by the pipeline, and its log probability."""
    config = genai.GenerationConfig(max_new_tokens=1, logprobs=1, apply_chat_template=False)
    handle = pipeline.add_request(0, text, images, [], config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    (found,) = handle.read_all()
    return found.generated_ids[0], found.generated_log_probs[0]


@pytest.mark.parametrize(("text", "seeds"), HEADS)
@pytest.mark.parametrize("chunk", [256, 7])
def test_what_is_read_is_what_the_pipeline_reads(path, model, pipeline, text, seeds, chunk):
    vision, mark = Vision(read_config(path), OpenVINOOptions()), MARKS[path.name]
    tokenizer, text = Tokenizer(pipeline.get_tokenizer()), text.format(mark, mark)
    files = tuple(image_file(seed, size=(90, 70)) for seed in seeds)
    for behind in ("", "a ball that"):
        asked = (1, text + behind, Sampling(), None, False, False)
        submit = Submit(*asked, images=files, image_mark=mark)
        prompt, tensors = vision.prompt(submit, tokenizer)[0], vision._decoded(files)
        expected = generated(pipeline, prompt, tensors)
        head = model.merging(*vision.tagged(text, mark, files, tokenizer))
        reading = model.begin()
        for start in range(0, len(head), chunk):
            reading.see(head[start : start + chunk])
        if behind:
            ids = tokenizer.encode([behind], special_tokens=False)[0]
            whole = reading.mark()
            reading.add(ids, silent=True)
        logprobs = log_softmax(reading.after)
        assert int(logprobs.argmax()) == expected[0]
        assert logprobs.max() == pytest.approx(expected[1], abs=1e-4)
    reading.back(whole)
    end = len(ids) - 1
    (found,) = reading.trees([Tree(ids, range(-1, end), {end: [expected[0]]})])
    assert found[end] == pytest.approx([expected[1]], abs=1e-4)


def test_the_models_own_files_stay_as_they_are(path):
    def digests():
        return {
            file.name: hashlib.sha256(file.read_bytes()).digest() for file in path.glob("open*")
        }

    before = digests()
    model = LogitModel(str(path / LANGUAGE_MODEL), OpenVINOOptions())
    assert len(model.merging("a", [])) > 0
    assert digests() == before


def test_models_that_show_images_otherwise_are_refused(path, tmp_path):
    other = Vision({"model_type": "internvl_chat"}, OpenVINOOptions())
    tokenizer = Tokenizer(genai.Tokenizer(str(path)))
    with pytest.raises(UnsupportedError, match="of the type 'internvl_chat', but by"):
        other.tagged("<image>?", "<image>", (image_file(1),), tokenizer)
    text, tensors = other.tagged(f"{TAGS['image']}?", TAGS["image"], (image_file(1),), tokenizer)
    assert (text, len(tensors)) == ("<ov_genai_image_0>?", 1)
    graph = ov.Core().read_model(path / LANGUAGE_MODEL)
    graph.add_parameters([ops.parameter([-1, -1], np.int64, name="token_type_ids")])
    graph.inputs[-1].set_names({"token_type_ids"})
    ov.save_model(graph, tmp_path / LANGUAGE_MODEL)
    with pytest.raises(UnsupportedError, match="reads token_type_ids: ask it"):
        LogitModel(str(tmp_path / LANGUAGE_MODEL), OpenVINOOptions())


@pytest.fixture(scope="module")
def engine_options():
    return {"deterministic": True, "num_threads": 1, "kv_cache_memory_bytes": 64 << 20}


async def test_decisions_depend_on_the_image(path, engine_options):
    engine = OpenVINOEngine(str(path), engine_kwargs=engine_options)
    await engine.start()
    try:
        first, again, other, none = [
            await engine.decide(_about(*files))
            for files in ([image_file(1)], [image_file(1)], [image_file(2)], [])
        ]
        assert first.items == again.items
        assert first.usage == again.usage == other.usage
        assert first.usage.prompt_tokens == none.usage.prompt_tokens + TOKENS[path.name]
        assert first.items != other.items
        for found in (*first.items, *none.items):
            assert sum(found.probabilities) == pytest.approx(1, abs=1e-6)
        with pytest.raises(RequestError, match="1,600,000,000 pixels"):
            await engine.decide(_about(bomb()))
        with pytest.raises(RequestError, match="no image of a known form"):
            await engine.decide(_about(b"no image"))
        with pytest.raises(RequestError, match="cannot be decoded"):
            await engine.decide(_about(image_file(1)[:900]))
        marked = (PredicateQuestion(f"An {MARKS[path.name]}?"),)
        with pytest.raises(RequestError, match="which stands for one"):
            await engine.decide(_about(image_file(1), asked=marked))
        for token in TOKENS_OF_IMAGES[path.name]:
            with pytest.raises(RequestError, match="a token that stands for an image"):
                await engine.decide(_about(image_file(1), text=f"Look at {token}"))
        long = (PredicateQuestion("what " * 2100),)
        with pytest.raises(ContextLengthError, match="input with a question"):
            await engine.decide(_about(image_file(1), asked=long))
        assert (await engine.decide(_about(image_file(1)))).items == first.items
    finally:
        await engine.stop()


def _about(*files, asked=QUESTIONS, text="Look."):
    parts = [*map(image_part, files), {"type": "text", "text": text}]
    return DecideRequest([{"role": "user", "content": parts}], asked)
