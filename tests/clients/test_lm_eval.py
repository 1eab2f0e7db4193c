"""Scores by log-probability: what lm-evaluation-harness measures through `penstock serve` is what
the model's own logits say, in each choice of 200 questions.

It needs torch (scripts/test_convert.sh) and the harness (scripts/clients/install.sh lm-eval).
"""

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from gguf_in_torch import hugging_face_form
from penstock.engines.openvino.model.gguf_ir import saved_ir
from penstock.engines.openvino.model.source import convert
from questions import THINGS, questions
from serve_process import serving

ROOT = Path(__file__).parents[2]
HARNESS = Path(os.environ.get("CLIENTS") or ROOT / ".clients").resolve() / "lm-eval"
pytestmark = [
    pytest.mark.convert,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(
        not (HARNESS / "pinned").exists(),
        reason=f"no {HARNESS}: scripts/clients/install.sh lm-eval makes it",
    ),
]
QUESTIONS = questions(200)
TEXTS = [
    "The kettle is on.",
    " ".join(f"In the {n}th row of the hall stands a {thing}." for n, thing in enumerate(THINGS)),
    "".join(question.prompt for question in QUESTIONS[5:18]),  # longer than a window
]
WINDOW = 128
"""Tokens of a window of the rolling task."""
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
}
PER_TOKEN = {"gguf": 1e-4, "converted": 1e-4, "torch": 2e-3}
"""How far the server's sums may be, for each of their tokens, from those of the same graph, and
from torch's: the graph has its constants in 16 bits.
"""


class Score(NamedTuple):
    """Of one text after another: the sum of its tokens' log-probabilities, whether each is the most
    likely one, and how many they are.
    """

    value: float
    greedy: bool
    tokens: int


class Direct:
    """A model without a server: `logits_of` gives for the ids of a whole sequence an array of
    [tokens, vocabulary].
    """

    def __init__(self, logits_of, tokenizer):
        self._logits_of = logits_of
        self._ids = lambda text: tokenizer.encode(text, add_special_tokens=False)
        self._start = tokenizer.bos_token_id

    def score(self, ids, size):
        """The last `size` of the ids after those before them."""
        logits = self._logits_of(ids[:-1])[-size:].astype(np.float64)
        top = logits.max(-1, keepdims=True)
        logprobs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        wanted = ids[-size:]
        value = logprobs[np.arange(size), wanted].sum()
        return Score(float(value), bool((logits.argmax(-1) == wanted).all()), size)

    def choice(self, prompt, choice):
        """Blanks at the prompt's end count as the choice's."""
        ids = self._ids(prompt + choice)
        return self.score(ids, len(ids) - len(self._ids(prompt.rstrip(" "))))

    def rolling(self, text, window):
        """All tokens of a text: the first window begins with the BOS token, and the last
        one is filled up with what came before.
        """
        ids = [self._start, *self._ids(text)]
        ends = [*range(window, len(ids) - 1, window), len(ids) - 1]
        starts = [0, *ends[:-1]]
        parts = [
            self.score(ids[max(end - window, 0) : end + 1], end - start)
            for start, end in zip(starts, ends, strict=True)
        ]
        return Score(sum(part.value for part in parts), False, len(ids) - 1)


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    """Where what is converted here is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def torch_form(smollm2, tmp_path_factory):
    """SmolLM2 for transformers: its folder and the model."""
    folder = tmp_path_factory.mktemp("smollm2")
    return folder, hugging_face_form(smollm2, folder)


@pytest.fixture(scope="module")
def tokenizer(torch_form):
    import transformers

    return transformers.AutoTokenizer.from_pretrained(torch_form[0])


@pytest.fixture(scope="module")
def sources(smollm2, torch_form):
    """What is served: a GGUF file, and the same model in Hugging Face's form."""
    return {"gguf": smollm2, "converted": str(torch_form[0])}


@pytest.fixture(scope="module")
def directly(sources, torch_form, tokenizer, cache_folder):
    """What torch, or the graph of a source, says of all questions and texts."""
    import openvino
    import torch

    def in_torch(ids):
        with torch.no_grad():
            return torch_form[1](torch.tensor([ids])).logits[0].numpy()

    def graph(source):
        path = sources[source]
        folder = saved_ir(Path(path)) if source == "gguf" else convert(path)
        compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", EXACT)
        request = compiled.create_infer_request()

        def logits_of(ids):
            request.reset_state()
            feed = {
                "input_ids": np.array([ids]),
                "attention_mask": np.ones((1, len(ids)), np.int64),
                "position_ids": np.arange(len(ids))[None],
                "beam_idx": np.zeros(1, np.int32),
            }
            names = {name for port in compiled.inputs for name in port.names}
            request.infer({name: value for name, value in feed.items() if name in names})
            return request.get_tensor("logits").data[0]

        return logits_of

    @cache
    def scores(how):
        direct = Direct(in_torch if how == "torch" else graph(how), tokenizer)
        return (
            [[direct.choice(asked.prompt, one) for one in asked.choices] for asked in QUESTIONS],
            [direct.rolling(text, WINDOW) for text in TEXTS],
        )

    return scores


TASKS = {
    "choosing": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
}


def evaluate(url, folder, batch_size, **about):
    """Run the harness. Returns its results and the answer to each request, by task."""
    rows = {
        "choosing": [asked._asdict() for asked in QUESTIONS],
        "rolling": [{"text": text} for text in TEXTS],
    }
    for name, fields in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "target_delimiter": "",
            **fields,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    about = {"model": "smol", "base_url": f"{url}/v1/completions", "max_retries": 1, **about}
    command = [
        *(str(HARNESS / "bin" / "lm_eval"), "--model", "local-completions"),
        *("--model_args", ",".join(f"{name}={value}" for name, value in about.items())),
        *("--tasks", ",".join(TASKS), "--include_path", str(folder)),
        *("--batch_size", str(batch_size)),
        *("--log_samples", "--output_path", str(folder / "out")),
    ]
    quiet = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    env = {**os.environ, **quiet, "HOME": str(folder), "OPENAI_API_KEY": "none"}
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        env.pop(name, None)
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    out = folder / "out"
    (results,) = out.rglob("results_*.json")
    answers = {}
    for name in TASKS:
        (samples,) = out.rglob(f"samples_{name}_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        lines.sort(key=lambda line: line["doc_id"])
        answers[name] = [line["filtered_resps"] for line in lines]
    return json.loads(results.read_text())["results"], answers


FORMS: dict[str, dict[str, object]] = {
    # The harness asks the server for its tokenizer, and sends ids.
    "ids": {"tokenizer_backend": "remote", "num_concurrent": 4},
    # It has a tokenizer of its own, and sends texts, eight at once.
    "texts": {"tokenizer_backend": "huggingface", "tokenized_requests": False},
}


@pytest.mark.parametrize(
    ("source", "form"), [("gguf", "ids"), ("converted", "ids"), ("converted", "texts")]
)
def test_each_score_is_the_models_own(source, form, sources, directly, torch_form, tmp_path):
    about = {**FORMS[form], "max_length": WINDOW + 2}
    if form == "texts":
        about["tokenizer"] = torch_form[0]
    with serving(sources[source], "--name", "smol") as server:
        size = 8 if form == "texts" else 1
        results, answers = evaluate(server.url, tmp_path, size, **about)
    said = [[float(value) for value, _ in each] for each in answers["choosing"]]
    greedy = [[flag == "True" for _, flag in each] for each in answers["choosing"]]
    # GenAI rounds the zero points of this GGUF file's weights, so torch has other numbers.
    for how in {"gguf": ["gguf"], "converted": ["converted", "torch"]}[source]:
        choices, texts = directly(how)
        values = [[one.value for one in each] for each in choices]
        tokens = [one.tokens for each in choices for one in each]
        away = np.abs(np.subtract(flat(said), flat(values))) / tokens
        assert away.max() < PER_TOKEN[how]
        assert greedy == [[one.greedy for one in each] for each in choices]
        assert best(said) == best(values)
        assert results["choosing"]["acc,none"] == accuracy(values)
        assert results["choosing"]["acc_norm,none"] == accuracy(normed(values))
        assert [float(value) for (value,) in answers["rolling"]] == pytest.approx(
            [one.value for one in texts], abs=PER_TOKEN[how] * max(one.tokens for one in texts)
        )


def flat(rows):
    return [each for row in rows for each in row]


def best(values):
    return [int(np.argmax(each)) for each in values]


def normed(values):
    """The harness's `acc_norm`: for each character of a choice."""
    return [
        [value / len(choice) for value, choice in zip(each, asked.choices, strict=True)]
        for each, asked in zip(values, QUESTIONS, strict=True)
    ]


def accuracy(values):
    right = [asked.right for asked in QUESTIONS]
    return pytest.approx(np.mean(np.equal(best(values), right)))
