"""The committed versions fit what pyproject.toml asks for, and no line is about the machine that
wrote them.
"""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PINNED_ELSEWHERE = {"vllm", "sglang", "nixl"}  # scripts/vllm/


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines[0].startswith("#")
    for line in lines[1:]:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line)
    return dict(line.split("==") for line in lines[1:])


def test_every_dependency_has_a_version_that_it_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = list(project["dependencies"])
    for extra, lines in project["optional-dependencies"].items():
        if extra not in PINNED_ELSEWHERE:
            asked += lines
    found = pins()
    for line in asked:
        wanted = Requirement(line)
        assert wanted.specifier.contains(found[wanted.name.lower().replace("_", "-")]), line


def test_scripts_and_documents_install_with_them():
    files = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / ".ci").iterdir(),
        *(ROOT / "scripts").glob("test_*.sh"),
    ]
    for file in files:
        if file.name == "test_versions.sh":  # it is about other versions
            continue
        for line in file.read_text().splitlines():
            if re.search(r"pip\"? install .*(-e|-q) ?['\"]?\.", line):
                assert "-c constraints.txt" in line, f"{file.name}: {line}"
