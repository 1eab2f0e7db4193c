"""Each in an interpreter of its own: what is loaded, when, and what is said of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import penstock
from penstock.kv import nixl

SOURCE = Path(penstock.__file__).parent.parent
AGENT = """
import os
SEEN = os.environ.get('UCX_RCACHE_MAX_UNRELEASED')
class nixl_agent: pass
class nixl_agent_config: pass
"""
SAY = "import json, logging, os, sys; from penstock.kv import nixl\n"


class Interpreter:
    """A fresh one, with a folder of packages that the test writes, which are all that it has unless
    `real` ones are wanted.
    """

    def __init__(self, folder: Path, *, real: bool = False) -> None:
        self.folder = folder
        self._real = real

    def package(self, name, api=AGENT, version=None):
        home = self.folder / name
        home.mkdir()
        (home / "__init__.py").write_text("")
        (home / "_api.py").write_text(api)
        (home / "_bindings.py").write_text("class nixlXferTelemetry: pass\n")
        if version:
            self.distribution(name, version)

    def distribution(self, name, version):
        info = self.folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def run(self, code, **environment):
        """What `code` prints as JSON, and the lines of the log."""
        log = "logging.basicConfig(level=logging.DEBUG, format='%(levelname)s %(message)s')\n"
        if not self._real:
            log += (
                "from importlib.machinery import PathFinder\nnixl.find_spec = lambda name:"
                f" PathFinder.find_spec(name, [{str(self.folder)!r}])\n"
            )
        given = {name: value for name, value in os.environ.items() if not name.startswith("UCX_")}
        given |= {"PYTHONPATH": f"{self.folder}:{SOURCE}", **environment}
        done = subprocess.run(
            [sys.executable, "-c", SAY + log + code],
            capture_output=True,
            text=True,
            env=given,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr.splitlines()


@pytest.fixture
def fresh(tmp_path):
    made = Interpreter(tmp_path)
    made.distribution("torch", "2.13.0+cpu")
    return made


LOADED = "[name for name in sys.modules if name.partition('.')[0] in ('nixl', 'rixl', 'nixl_rocm')]"


def test_importing_and_looking_loads_nothing(fresh):
    fresh.package("nixl", version="1.5.1")
    code = "dir(nixl); hasattr(nixl, '__wrapped__'); nixl.package_name(); nixl.version()\n"
    loaded, said = fresh.run(code + f"print(json.dumps({LOADED}))")
    assert loaded == []
    assert said == []


def test_who_only_names_the_types_loads_nothing(fresh):
    fresh.package("nixl")
    (fresh.folder / "user.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from penstock.kv.nixl import NixlWrapper, nixl_agent_config\n"
        "def use(agent: NixlWrapper, config: nixl_agent_config) -> NixlWrapper: ...\n"
    )
    loaded, _ = fresh.run(f"import user; user.use(1, 2); print(json.dumps({LOADED}))")
    assert loaded == []


def test_an_attribute_loads_the_package_once_and_says_so_once(fresh):
    fresh.package("nixl", version="1.5.1")
    told, said = fresh.run(
        "first = nixl.NixlWrapper; del nixl.__dict__['NixlWrapper']; again = nixl.NixlWrapper\n"
        "print(json.dumps([first.__module__, first is again, nixl.nixl_agent_config.__name__,"
        " nixl.nixlXferTelemetry.__name__, nixl.version(), nixl.require_nixl('x') is first]))"
    )
    assert told == ["nixl._api", True, "nixl_agent_config", "nixlXferTelemetry", "1.5.1", True]
    assert said == [
        "INFO UCX_RCACHE_MAX_UNRELEASED is set to 1024, so that UCX's memory stays bounded",
        "INFO NIXL is available: nixl 1.5.1",
    ]


def test_many_threads_load_it_once(fresh):
    fresh.package("nixl", api=AGENT + "print('loading', file=__import__('sys').stderr)\n")
    code = (
        "import threading\n"
        "go = threading.Barrier(8)\n"
        "def ask(): go.wait(); nixl.NixlWrapper\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]; print('0')"
    )
    _, said = fresh.run(code)
    assert said.count("loading") == 1
    assert sum("is available" in line for line in said) == 1


def test_ucx_is_limited_before_the_load(fresh):
    fresh.package("nixl")
    code = "nixl.NixlWrapper; print(json.dumps(sys.modules['nixl._api'].SEEN))"
    assert fresh.run(code)[0] == "1024"
    told, said = fresh.run(code, UCX_RCACHE_MAX_UNRELEASED="7")
    assert told == "7"
    assert not any("UCX" in line for line in said)


def test_too_late_is_one_warning(fresh):
    fresh.package("nixl")
    told, said = fresh.run(
        "import nixl._api; nixl_home = nixl\n"
        "from penstock.kv import nixl\n"
        "nixl.NixlWrapper; nixl.nixlXferTelemetry; nixl.limit_ucx()\n"
        "print(json.dumps(os.environ.get('UCX_RCACHE_MAX_UNRELEASED')))"
    )
    assert told is None
    assert [line for line in said if "UCX" in line] == [
        "WARNING NIXL was loaded before UCX_RCACHE_MAX_UNRELEASED could be set: set it to 1024"
        " yourself"
    ]


@pytest.mark.parametrize(
    ("build", "installed", "chosen"),
    [
        ("rocm6.4", ("nixl", "rixl"), "rixl"),
        ("rocm6.4", ("nixl", "nixl_rocm"), "nixl_rocm"),
        ("rocm6.4", ("nixl",), None),
        ("cu129", ("nixl", "rixl"), "nixl"),
        ("cpu", ("rixl",), None),
    ],
)
def test_the_platform_chooses_the_package(tmp_path, build, installed, chosen):
    made = Interpreter(tmp_path)
    made.distribution("torch", f"2.13.0+{build}")
    for name in installed:
        made.package(name)
    told, _ = made.run(
        "found = nixl.NixlWrapper\nprint(json.dumps([nixl.package_name(), found and"
        " found.__module__]))",
    )
    assert told == [chosen, chosen and f"{chosen}._api"]


@pytest.mark.parametrize(
    ("devices", "chosen"),
    [(["/dev/kfd"], "rixl"), (["/dev/kfd", "/dev/nvidiactl"], "nixl"), ([], "nixl")],
)
def test_the_devices_choose_it_where_torch_does_not_tell(tmp_path, devices, chosen):
    made = Interpreter(tmp_path)
    for name in ("nixl", "rixl"):
        made.package(name)
    told, _ = made.run(
        "real = nixl.metadata.version\n"
        "def version(name):\n"
        "    if name == 'torch': raise nixl.metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "nixl.metadata.version = version\n"
        f"nixl.os.path.exists = lambda path: path in {devices}\n"
        "print(json.dumps([nixl.package_name(), nixl.NixlWrapper.__module__]))"
    )
    assert told == [chosen, f"{chosen}._api"]


def test_a_missing_package_is_none_and_one_error_where_it_is_required(fresh):
    told, said = fresh.run(
        "from penstock.errors import MissingExtraError\n"
        "checks = [nixl.NixlWrapper, nixl.nixl_agent_config, nixl.nixlXferTelemetry]\n"
        "checks += [nixl.package_name(), nixl.version()]\n"
        "try: nixl.require_nixl('The NixlConnector')\n"
        "except MissingExtraError as error: checks.append(str(error))\n"
        "print(json.dumps(checks))"
    )
    needs = (
        "The NixlConnector needs the package 'nixl', which is not installed: pip install"
        " 'penstock[nixl]'"
    )
    assert told == [None] * 5 + [needs]
    assert said == ["INFO NIXL is not available: there is no package 'nixl'"]


def test_a_broken_package_is_none_and_says_why(fresh):
    fresh.package("nixl", api="raise OSError('libcuda.so.1: cannot open\\nshared object file')")
    told, said = fresh.run(
        "from penstock.errors import EngineStartError\n"
        "checks = [nixl.NixlWrapper, nixl.NixlWrapper, nixl.nixl_agent_config]\n"
        "try: nixl.require_nixl('The NixlConnector')\n"
        "except EngineStartError as error: checks.append(str(error))\n"
        "print(json.dumps(checks))"
    )
    why = "OSError: libcuda.so.1: cannot open shared object file"
    assert told[:3] == [None] * 3
    assert (
        told[3] == f"The NixlConnector needs NIXL, which is installed but cannot be imported: {why}"
    )
    assert [line for line in said if "not available" in line] == [
        f"WARNING NIXL is not available: 'nixl' cannot be imported ({why})"
    ]


def test_a_package_without_an_attribute_gives_none_for_it(fresh):
    fresh.package("nixl", api="class nixl_agent: pass\n")
    told, _ = fresh.run("print(json.dumps([nixl.NixlWrapper.__name__, nixl.nixl_agent_config]))")
    assert told == ["nixl_agent", None]


@pytest.mark.vllm
@pytest.mark.skipif(
    nixl.package_name() is None, reason="needs NIXL: VLLM_EXTRAS=nixl scripts/install_vllm.sh"
)
def test_the_real_package(tmp_path):
    told, said = Interpreter(tmp_path, real=True).run(
        "before = [name for name in sys.modules if 'nixl' in name and 'penstock' not in"
        " name]\nnames = [nixl.NixlWrapper.__name__, nixl.nixl_agent_config.__name__,"
        " nixl.nixlXferTelemetry.__name__]\nprint(json.dumps([before, names, nixl.version(),"
        " os.environ['UCX_RCACHE_MAX_UNRELEASED']]))"
    )
    assert told == [
        [],
        ["nixl_agent", "nixl_agent_config", "nixlXferTelemetry"],
        nixl.version(),
        "1024",
    ]
    assert sum("NIXL is available: nixl" in line for line in said) == 1


def test_other_names_are_attribute_errors(fresh):
    told, _ = fresh.run("print(json.dumps(hasattr(nixl, 'agent')))")
    assert told is False
