"""Log probabilities of the demo model, converted here, are those of a float32 reference."""

from importlib import import_module

import numpy as np
import pytest

from penstock.demo import model_path
from penstock.engines.openvino.logits.model import LogitModel
from penstock.engines.openvino.model_source import find_model
from penstock.engines.openvino.options import OpenVINOOptions

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("default")]
IDS = np.random.default_rng(3).integers(5, 1000, 300).tolist()
BRANCHES = [IDS[20 * start : 20 * start + 9] for start in range(8)]


def reference(ids):
    """Log probabilities after each token, shape [tokens, vocabulary]. The exporter rounds all to 16
    bits, the rotary frequencies too; the computation is in float32.
    """
    torch, transformers = import_module("torch"), import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_path("huggingface"), dtype=torch.float32
    )
    with torch.no_grad():
        logits = model.half().float().eval()(torch.tensor([ids])).logits[0].double()
    return torch.log_softmax(logits, -1).numpy()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        files = find_model(str(model_path("huggingface")), "generate", None)
    return LogitModel(f"{files.path}/openvino_model.xml", OpenVINOOptions())


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
    found = reading.tree(ids, parents, wanted)
    for branch, values in zip(BRANCHES, found.values(), strict=True):
        expected = reference([*head, *branch])[-1]
        assert values == pytest.approx(expected[[7, 8, 900]], abs=1e-3)
