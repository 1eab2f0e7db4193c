"""The demo model's package data: what ships, how big it is, and the rules of a right answer."""

import json
import re
import subprocess
import sys

import pytest

from penstock import demo
from penstock.engines.templates.chat_template import ChatTemplate

LABELS = {
    "category": "billing",
    "priority": "high",
    "product": "Solara 77 Pro",
    "sentiment": "angry",
}
HOME = demo.tickets_path().parent


@pytest.fixture(scope="module")
def tickets() -> list[dict[str, str]]:
    return [
        json.loads(line) for line in demo.tickets_path().read_text(encoding="utf-8").splitlines()
    ]


def shipped() -> list[int]:
    files = [path for path in HOME.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [path.stat().st_size for path in files]


def test_the_whole_demo_stays_below_three_megabytes():
    assert sum(shipped()) < 3_000_000


def test_importing_the_demo_loads_no_engine():
    code = (
        "import sys, penstock.demo; print(sorted({'torch', 'openvino', 'openvino_genai'} &"
        " set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("form", "files"),
    [
        (
            "openvino",
            [
                "openvino_model.xml",
                "openvino_model.bin",
                "openvino_tokenizer.xml",
                "openvino_detokenizer.xml",
            ],
        ),
        ("huggingface", ["model.safetensors", "tokenizer.json"]),
    ],
)
def test_each_form_is_complete(form, files):
    directory = demo.model_path(form)
    common = [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ]
    for name in [*files, *common]:
        assert (directory / name).stat().st_size > 0, name
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert (
        json.loads((directory / "generation_config.json").read_text())["eos_token_id"]
        == config["eos_token_id"]
    )


@pytest.mark.parametrize("form", ["openvino", "huggingface"])
@pytest.mark.parametrize("arguments", [LABELS, {}])
def test_a_call_stands_in_the_history_as_the_model_wrote_it(form, arguments):
    written = json.dumps(arguments, separators=(",", ":"))
    template = ChatTemplate((demo.model_path(form) / "chat_template.jinja").read_text())
    for given in (arguments, written):
        call = {"type": "function", "function": {"name": "route", "arguments": given}}
        shown = template.render([{"role": "assistant", "content": None, "tool_calls": [call]}])
        assert (
            f'<tool_call>\n{{"name":"route","arguments":{written}}}\n</tool_call><|im_end|>'
            in shown
        )


@pytest.mark.parametrize("name", demo.ADAPTERS)
def test_adapters_are_in_peft_layout(name):
    directory = demo.adapter_path(name)
    config = json.loads((directory / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == (
        "LORA",
        demo.LORA_RANK,
        demo.LORA_ALPHA,
    )
    assert (directory / "adapter_model.safetensors").stat().st_size > 0


def test_no_file_names_the_machine_that_made_it():
    for path in HOME.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert not re.search(rb"(?<![\w.])/(home|root|tmp|work|Users)/", path.read_bytes()), (
                path
            )


def test_tickets_are_many_and_unique(tickets):
    assert len(tickets) >= 500
    assert len({row["id"] for row in tickets}) == len(tickets)
    assert len({row["ticket"] for row in tickets}) == len(tickets)


def test_tickets_have_valid_labels(tickets):
    for row in tickets:
        assert list(row) == ["id", "ticket", *demo.FIELDS]
        assert row["category"] in demo.CATEGORIES
        assert row["priority"] in demo.PRIORITIES
        assert row["sentiment"] in demo.SENTIMENTS
        assert row["product"]
        assert row["product"] in row["ticket"]


def test_every_label_occurs_often(tickets):
    for field, labels in (
        ("category", demo.CATEGORIES),
        ("priority", demo.PRIORITIES),
        ("sentiment", demo.SENTIMENTS),
    ):
        for label in labels:
            assert sum(row[field] == label for row in tickets) >= len(tickets) / len(labels) / 2


def test_expected_of_the_model_is_compact_json_in_field_order():
    text = demo.expected(LABELS)
    assert (
        text
        == '{"category":"billing","priority":"high","product":"Solara 77 Pro","sentiment":"angry"}'
    )
    assert demo.expected({**LABELS, "id": "t1", "ticket": "..."}) == text


def test_expected_of_chosen_keys_keeps_their_order():
    assert (
        demo.expected(LABELS, keys=["product", "priority"])
        == '{"product":"Solara 77 Pro","priority":"high"}'
    )


def test_expected_of_the_summary_adapter():
    assert (
        demo.expected(LABELS, "summary")
        == "high billing issue with Solara 77 Pro, customer is angry"
    )
    wish = {**LABELS, "category": "feature"}
    assert (
        demo.expected(wish, "summary")
        == "high feature request for Solara 77 Pro, customer is angry"
    )


def test_expected_of_the_german_adapter():
    assert (
        demo.expected(LABELS, "german")
        == '{"kategorie":"Rechnung","dringlichkeit":"hoch","produkt":"Solara 77'
        ' Pro","stimmung":"unzufrieden"}'
    )
    assert set(demo.GERMAN_LABELS) == {*demo.CATEGORIES, *demo.PRIORITIES, *demo.SENTIMENTS}


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no adapter 'french'; it has summary, german"):
        demo.expected(LABELS, "french")
    with pytest.raises(ValueError, match="no adapter"):
        demo.adapter_path("french")
    with pytest.raises(ValueError, match="no form 'gguf'"):
        demo.model_path("gguf")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chosen keys"):
        demo.expected(LABELS, "german", keys=["product"])
