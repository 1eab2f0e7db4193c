"""Log probabilities of the demo model and of SmolLM2, converted here, are those of a float32
reference.
"""

import json
from importlib import import_module

import numpy as np
import openvino_genai as genai
import pytest
from make_vision_model import write_vision_model

from gguf_in_torch import hugging_face_form
from penstock.demo import model_path, tickets_path
from penstock.engines.openvino.lanes.vision import Vision
from penstock.engines.openvino.logits.model import LogitModel, Tree, log_softmax
from penstock.engines.openvino.model.files import LANGUAGE_MODEL, read_config
from penstock.engines.openvino.model.source import find_model
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.openvino.pipeline import Tokenizer
from vision_models import image_file, picture

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("default")]
IDS = np.random.default_rng(3).integers(5, 1000, 300).tolist()
BRANCHES = [IDS[20 * start : 20 * start + 9] for start in range(8)]


def reference(ids, path=None):
    """Log probabilities after each token, shape [tokens, vocabulary]. The exporter rounds all to 16
    bits, the rotary frequencies too; the computation is in float32.
    """
    torch, transformers = import_module("torch"), import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path or model_path("huggingface"), dtype=torch.float32
    )
    with torch.no_grad():
        logits = model.half().float().eval()(torch.tensor([ids])).logits[0].double()
    return torch.log_softmax(logits, -1).numpy()


def converted(path, cache, exact=True, name="openvino_model.xml"):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_CACHE_DIR", str(cache))
        files = find_model(str(path), "generate", None)
    return LogitModel(f"{files.path}/{name}", OpenVINOOptions(), exact, grows=exact)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model(cache):
    return converted(model_path("huggingface"), cache)


def test_a_prompt(model):
    expected = reference(IDS)
    reading = model.begin()
    scores = [
        score
        for start in range(0, len(IDS), 100)
        for score in reading.add(IDS[start : start + 100], top=5)
    ]
    for place, score in enumerate(scores):
        assert score.logprob == pytest.approx(expected[place][score.token], abs=1e-3)
        best = np.sort(expected[place])[::-1][:5]
        assert [value for _, value in score.top] == pytest.approx(best, abs=1e-3)


def test_continuations_of_one_prompt_read_at_once(model):
    head, wanted = IDS[:100], {}
    ids: list[int] = []
    parents: list[int] = []
    for branch in BRANCHES:
        for place, token in enumerate(branch):
            parents.append(len(ids) - 1 if place else -1)
            ids.append(token)
        wanted[len(ids) - 1] = [7, 8, 900]
    reading = model.begin()
    reading.add(head, silent=True)
    (found,) = reading.trees([Tree(ids, parents, wanted)])
    for branch, values in zip(BRANCHES, found.values(), strict=True):
        expected = reference([*head, *branch])[-1]
        assert values == pytest.approx(expected[[7, 8, 900]], abs=1e-3)


def test_smollm2_in_f32_and_in_the_precision_of_the_device(smollm2, cache, tmp_path):
    hugging_face_form(smollm2, tmp_path)
    texts = [json.loads(line)["ticket"] for line in tickets_path().read_text().splitlines()[:4]]
    ids = import_module("transformers").AutoTokenizer.from_pretrained(tmp_path)(" ".join(texts))
    ids = ids["input_ids"]
    expected = reference(ids, tmp_path)[np.arange(len(ids) - 1), ids[1:]]
    exact = converted(tmp_path, cache).begin().add(ids)
    assert [score.logprob for score in exact] == pytest.approx(expected, abs=1e-3)
    coarse = converted(tmp_path, cache, exact=False).begin().add(ids)
    apart = [abs(score.logprob - one) for score, one in zip(coarse, expected, strict=True)]
    assert np.mean(apart) < 0.05


def test_a_text_with_an_image(cache, tmp_path):
    torch, transformers = import_module("torch"), import_module("transformers")
    model = write_vision_model(tmp_path)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    text = "USER: <image>\nwhat is in the picture? ASSISTANT:"
    inputs = processor.tokenizer(text.replace("<image>", "<image>" * 16), return_tensors="pt")
    pixels = processor.image_processor(picture(1, (56, 56)), return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = model.half().float()(**inputs, pixel_values=pixels).logits[0].double()
    expected = torch.log_softmax(logits, -1)[-1].numpy()
    read = converted(tmp_path, cache, name=LANGUAGE_MODEL)
    vision = Vision(read_config(tmp_path), OpenVINOOptions())
    reading, files = read.begin(), (image_file(1, size=(56, 56)),)
    tokenizer = Tokenizer(genai.Tokenizer(str(read._folder)))
    reading.see(read.merging(*vision.tagged(text, "<image>", files, tokenizer)))
    assert reading.length == inputs.input_ids.shape[1]
    assert log_softmax(reading.after) == pytest.approx(expected, abs=1e-3)
