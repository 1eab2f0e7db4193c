"""Texts with images, read by the second copy, held against GenAI's pipeline that generates."""

import hashlib

import openvino_genai as genai
import pytest

from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.lanes.vision import Vision
from penstock.engines.openvino.logits.merging import _write_tokenizer
from penstock.engines.openvino.logits.model import EXACT, LogitModel, log_softmax
from penstock.engines.openvino.model.files import LANGUAGE_MODEL, read_config
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.openvino.pipeline import AS_IS, Tokenizer
from penstock.engines.process import Submit
from penstock.errors import ContextLengthError, RequestError
from penstock.types import ChoiceQuestion, DecideRequest, Option, PredicateQuestion, Sampling
from vision_models import bomb, image_file, image_part, vision_model
from word_models import write_tokenizer

QUESTIONS = (
    ChoiceQuestion("Which?", tuple(map(Option, ("a cat", "a dog", "a red ball")))),
    PredicateQuestion("Is it red?"),
)
HEADS = (
    ("USER: <image>\nwhat is it? ASSISTANT:", (1,)),
    ("USER: <image>\n and <image>\n: what? ASSISTANT:", (2, 3)),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return vision_model(tmp_path_factory.mktemp("model"))


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
    vision = Vision(read_config(path), OpenVINOOptions())
    tokenizer = Tokenizer(pipeline.get_tokenizer())
    files = tuple(image_file(seed, size=(90, 70)) for seed in seeds)
    for behind in ("", "a ball that"):
        asked = (1, text + behind, Sampling(), None, False, False)
        submit = Submit(*asked, images=files, image_mark="<image>")
        prompt, tensors = vision.prompt(submit, tokenizer)[0], vision._decoded(files)
        expected = generated(pipeline, prompt, tensors)
        head = model.merging(*vision.tagged(text, "<image>", files))
        reading = model.begin()
        for start in range(0, len(head), chunk):
            reading.see(head[start : start + chunk])
        if behind:
            reading.add(tokenizer.encode([behind], special_tokens=False)[0], silent=True)
        logprobs = log_softmax(reading.after)
        assert int(logprobs.argmax()) == expected[0]
        assert logprobs.max() == pytest.approx(expected[1], abs=1e-4)


def test_the_tokenizer_adds_no_tokens(tmp_path):
    own, made = tmp_path / "own", tmp_path / "made"
    own.mkdir()
    made.mkdir()
    write_tokenizer(own, token_types=False)
    _write_tokenizer(own / "openvino_tokenizer.xml", made / "openvino_tokenizer.xml")
    (made / "openvino_tokenizer.bin").symlink_to(own / "openvino_tokenizer.bin")

    def ids(folder, special):
        encoded = genai.Tokenizer(str(folder)).encode("good day", add_special_tokens=special)
        return encoded.input_ids.data.tolist()

    plain = ids(own, False)
    assert ids(own, True) != plain
    assert ids(made, True) == ids(made, False) == plain


def test_the_models_own_files_stay_as_they_are(path):
    def digests():
        return {
            file.name: hashlib.sha256(file.read_bytes()).digest() for file in path.glob("open*")
        }

    before = digests()
    model = LogitModel(str(path / LANGUAGE_MODEL), OpenVINOOptions())
    assert len(model.merging("a", [])) > 0
    assert digests() == before


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
        assert first.usage.prompt_tokens == none.usage.prompt_tokens + 16 + 1  # and a line end
        assert first.items != other.items
        for found in (*first.items, *none.items):
            assert sum(found.probabilities) == pytest.approx(1, abs=1e-6)
        with pytest.raises(RequestError, match="1,600,000,000 pixels"):
            await engine.decide(_about(bomb()))
        with pytest.raises(RequestError, match="no image of a known form"):
            await engine.decide(_about(b"no image"))
        with pytest.raises(RequestError, match="cannot be decoded"):
            await engine.decide(_about(image_file(1)[:900]))
        with pytest.raises(RequestError, match="the texts hold '<image>'"):
            await engine.decide(_about(image_file(1), asked=(PredicateQuestion("An <image>?"),)))
        long = (PredicateQuestion("what " * 2100),)
        with pytest.raises(ContextLengthError, match="input with a question"):
            await engine.decide(_about(image_file(1), asked=long))
        assert (await engine.decide(_about(image_file(1)))).items == first.items
    finally:
        await engine.stop()


def _about(*files, asked=QUESTIONS):
    parts = [*map(image_part, files), {"type": "text", "text": "Look."}]
    return DecideRequest([{"role": "user", "content": parts}], asked)
