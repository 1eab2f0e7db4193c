"""Each block of the book is run by a test, read by one, or said not to be run."""

import json
import re
import tomllib

import pytest
import yaml  # type: ignore[import-untyped]

import book
from penstock.serve.config.serving_args import LLMServingArgs, PDServingArgs

SAID = re.compile(r"\bnot\s+run\b|\bnever\s+run\b|run\s+by\s+`|has\s+not\s+run\b", re.IGNORECASE)
NEAR = 700  # characters before or behind a block
DEMO = {"model_loading_config": {"model_id": "demo", "model_source": "demo"}}


@pytest.mark.parametrize("page", book.PAGES)
def test_a_block_is_run_or_said_not_to_be(page):
    text = book.text(page)
    for block in book.BLOCK.finditer(text):
        kind = block[1]
        if kind == "sh" and page not in ("README.md", "CONTRIBUTING.md"):  # .ci/run runs these
            around = text[max(0, block.start() - NEAR) : block.end() + NEAR]
            assert SAID.search(around), f"{page} does not say that this is not run:\n{block[0]}"
        else:
            shown = {"json", "sh", "text", "toml", "yaml"}
            assert kind in book.RUN[page] | shown, f"{page}: nothing runs\n{block[0]}"


@pytest.mark.parametrize("page", [one for one in book.PAGES if one.startswith("docs/")])
def test_a_page_says_what_is_not_tested(page):
    about_no_feature = {
        *("architecture", "concepts/pictures", "glossary", "index", "parameters"),
        *("reference/environment", "reference/python", "start", "tutorial"),
    }
    if page.removeprefix("docs/").removesuffix(".md") not in about_no_feature:
        said = r"(?i)not\s+(run|tested|measured|tried)|untested|nothing\s+was\s+run"
        assert re.search(said, book.text(page)), f"{page} names nothing"


@pytest.mark.parametrize("page", book.COMMANDS)
def test_a_command_is_one_that_tests_run(page):
    programs = ("penstock", "curl") if page == "docs/serving.md" else ("penstock",)
    found = {command for program in programs for command in book.commands(page, program)}
    shown = "".join(book.blocks(page, "bash"))
    assert sorted(shown.split()) == sorted(" ".join(found).split())


@pytest.mark.parametrize("page", book.PAGES)
def test_a_configuration_can_be_read(page):
    for block in book.blocks(page, "yaml"):
        config = yaml.safe_load(block)
        if "applications" in config:
            (application,) = config["applications"]
            args = application["args"]
            single = args.pop("llm_config", None)
            LLMServingArgs.from_dict({**args, "llm_configs": [single]} if single else args)
        elif "prefill_config" in config:
            PDServingArgs.from_dict(config)
        elif "llm_configs" in config or "http" in config:
            LLMServingArgs.from_dict({"llm_configs": [DEMO], **config})
        else:  # those of questions are used by the commands beside them
            assert {*config} <= {"questions", "scrape_configs"}
    for block in book.blocks(page, "toml"):
        tomllib.loads(block)
    for block in book.blocks(page, "json"):
        for line in block.splitlines():
            json.loads(line)


def test_contributing_has_the_layers_of_the_linter():
    (shown,) = book.blocks("CONTRIBUTING.md", "text")
    project = tomllib.loads((book.ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(one for one in project["contracts"] if one["type"] == "layers")["layers"]
    assert re.sub(r"  +\(.*", "", shown).splitlines() == [re.sub("[()]", "", one) for one in layers]
