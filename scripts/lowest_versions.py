"""Prints "name==version" for each package that Penstock asks for itself: the lowest version that
pyproject.toml allows and that has a wheel for this Python; a floor without one is named. Arguments
are the extras to count in. Needs pip and packaging.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python's pip."""
    return subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)


def has_wheel(pinned: str) -> bool:
    """Whether "name==version" can be installed here without being built."""
    there = (
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--only-binary",
        ":all:",
        pinned,
    )
    return pip(*there).returncode == 0


def lowest(wanted: Requirement) -> str:
    """The lowest version that is wanted and has a wheel, as "name==version"."""
    floor = next(part.version for part in wanted.specifier if part.operator == ">=")
    if has_wheel(pinned := f"{wanted.name}=={floor}"):
        return pinned
    listed = (
        pip("index", "versions", wanted.name)
        .stdout.partition("Available versions:")[2]
        .partition("\n")[0]
    )
    for version in sorted(
        filter(wanted.specifier.contains, listed.replace(" ", "").split(",")), key=Version
    ):
        if has_wheel(pinned := f"{wanted.name}=={version}"):
            print(
                f"{wanted}: {version} is the lowest with a wheel for this Python", file=sys.stderr
            )
            return pinned
    sys.exit(f"no version of {wanted} has a wheel for this Python")


project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
lines = [
    *project["dependencies"],
    *(line for extra in sys.argv[1:] for line in project["optional-dependencies"][extra]),
]
for line in sorted(set(lines)):
    print(lowest(Requirement(line)))
