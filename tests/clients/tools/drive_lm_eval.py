"""lm-evaluation-harness: tasks of each of its forms."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from driver import ANSWER, CATEGORIES, MODEL, QUESTION, V1, check, run

TOKENIZER = os.environ["SERVER_TOKENIZER"]
HOME = Path(os.environ["HOME"])
TASKS = HOME / "tasks"
TASKS.mkdir()
# Both models were trained on this template.
PROMPT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
CHOICES = [f'{{"category":"{name}"' for name in CATEGORIES]
RIGHT = next((n for n, choice in enumerate(CHOICES) if ANSWER.startswith(choice)), 0)
ROW = {
    "question": QUESTION,
    "prompt": PROMPT,
    "choices": CHOICES,
    "right": RIGHT,
    "answer": ANSWER,
}
(HOME / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n" * 3)
COMMON = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(HOME / "rows.jsonl")}},
    "test_split": "test",
    "target_delimiter": "",
}
for name, fields in {
    "choosing": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "saying": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 100, "temperature": 0},
        "metric_list": [{"metric": "exact_match"}],
    },
}.items():
    (TASKS / f"{name}.yaml").write_text(json.dumps({"task": name, **COMMON, **fields}))


def evaluate(model, path, task, *more, **fields):
    about = {"model": MODEL, "base_url": f"{V1}/{path}", "num_concurrent": 2, "max_retries": 1}
    about = ",".join(f"{name}={value}" for name, value in {**about, **fields}.items())
    output = Path(tempfile.mkdtemp())
    command = ["lm_eval", "--model", model, "--model_args", about, "--tasks", task]
    command += ["--include_path", str(TASKS), "--output_path", str(output / "out.json")]
    env = {**os.environ, "OPENAI_API_KEY": "none", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([*command, *more], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = output.iterdir()
    return json.loads(found.read_text())["results"][task]


@check
def chat():
    templated = ["--apply_chat_template"]
    fields = {"tokenizer_backend": None}
    results = evaluate("local-chat-completions", "chat/completions", "saying", *templated, **fields)
    if ANSWER:
        assert results["exact_match,none"] == 1, results


@check
def completions():
    evaluate("local-completions", "completions", "saying", tokenizer_backend=None)


def chosen(**fields):
    """The log-probability of each choice after the prompt, by `echo` and `logprobs`."""
    results = evaluate("local-completions", "completions", "choosing", **fields)
    if ANSWER:
        assert results["acc,none"] == 1, results


@check
def choices():
    chosen(tokenizer=TOKENIZER, tokenized_requests=False)


@check
def choices_of_ids():
    chosen(tokenizer=TOKENIZER, tokenized_requests=True)


@check
def choices_of_the_server():
    """It asks the server for its tokenizer."""
    chosen(tokenizer_backend="remote", tokenized_requests=True)


@check
def perplexity():
    results = evaluate("local-completions", "completions", "rolling", tokenizer=TOKENIZER)
    assert results["word_perplexity,none"] > 1


run()
