"""The pages on coming from Ray have a verdict on every public name of Ray, with its reason."""

import json
import re
import runpy
from pathlib import Path

import pytest

from penstock.compat import ray as ray_names

ROOT = Path(__file__).parents[2]
NAMES = json.loads((Path(__file__).parent / "ray_names.json").read_text())
TOOL = runpy.run_path(str(ROOT / "tools" / "ray_names.py"))
ROWS = {
    module: re.findall(r"^\| `([\w.]+)` \| (\w+) \| (.*) \|$", part, re.MULTILINE)
    for page in TOOL["PAGES"]
    for module, part in re.findall(
        r"^### `([\w.]+)`\n(.*?)(?=^###|<!-- end)", page.read_text(), re.M | re.S
    )
}


@pytest.mark.parametrize("module", NAMES["modules"])
def test_every_name_has_a_line(module):
    rows = {name: why for name, _, why in ROWS[module]}
    for name, about in NAMES["modules"][module].items():
        assert name in rows
        for member in (*about.get("fields", {}), *about.get("methods", {})):
            assert f"`{member}`" in rows[name] or f"{name}.{member}" in rows, f"{name}.{member}"


def test_every_difference_has_a_reason():
    for rows in ROWS.values():
        for name, word, why in rows:
            assert word in ("same", "differs", "refused"), name
            assert word == "same" or why, name


@pytest.mark.parametrize(
    ("wanted", "ours", "why"),
    [
        (["a", "b="], lambda a, b=1: None, ""),
        (["a", "c="], lambda a, b=1: None, "takes no `c`"),
        (["a", "**kwargs"], lambda a: None, ""),
        (["a"], lambda **kwargs: None, ""),
        (["a"], lambda a, b: None, "needs `b`"),
        (["a", "b="], lambda a, b: None, "needs `b`"),
        (["a", "b="], lambda b=1, a=1: None, "takes `b`, `a` in this order"),
        (["a", "b="], lambda a, *, b=1: None, ""),
    ],
)
def test_parameters_are_compared(wanted, ours, why):
    assert TOOL["unlike"](wanted, ours) == why


def test_a_class_is_compared_by_its_constructor():
    about = {"parameters": ["llm_config", "nothing="], "methods": {}}
    verdict = TOOL["compared"](about, TOOL["ours_of"]("ray.serve.llm", "LLMServer"))
    assert verdict == TOOL["Verdict"]("differs", "takes no `nothing`")


def test_what_is_written_by_hand_may_be_out_of_date():
    verdict, weighed = TOOL["Verdict"], TOOL["weighed"]
    refused, differs = verdict("refused", "why"), verdict("differs", "why")
    assert weighed(refused, verdict("missing")) == refused
    assert weighed(refused, verdict("same")) == verdict("same")
    assert weighed(differs, verdict("same")) == differs
    assert weighed(differs, verdict("missing")) == verdict("missing")


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_the_pages_are_up_to_date():
    """Run tools/ray_names.py where they are not."""
    ray = pytest.importorskip("ray")
    if ray.__version__ != NAMES["ray"]:
        pytest.skip(f"the table is of Ray {NAMES['ray']}")
    names = TOOL["read_ray"]()
    assert names == NAMES
    for page, made in TOOL["tables"](names).items():
        assert TOOL["with_table"](page.read_text(), made) == page.read_text()


@pytest.mark.parametrize("engine", ["vLLMEngine", "SGLangEngine", "HttpRequest", "ServeDeployment"])
def test_processors_have_rays_base(engine):
    cls = getattr(ray_names, f"{engine}ProcessorConfig")
    assert issubclass(cls, ray_names.ProcessorConfig)
