import ast
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import penstock
from penstock import lazy
from penstock.errors import MissingExtraError, PenstockError

SOURCE = Path(penstock.__file__).parent
FACES = [path for path in sorted(SOURCE.rglob("*.py")) if "lazy.attach(" in path.read_text()]


# Every face of the package: its two lists are one.


def face_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(["penstock", *(part for part in parts if part != "__init__")])


def typed_names(tree: ast.Module) -> dict[str, tuple[str, ...]]:
    """The imports under `if TYPE_CHECKING:`, as home module -> names."""
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    names: dict[str, list[str]] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom), ast.unparse(node)
        for alias in node.names:
            assert alias.asname == alias.name, (
                f"write `{alias.name} as {alias.name}`, which marks a re-export"
            )
            names.setdefault(str(node.module), []).append(alias.name)
    return {home: tuple(lent) for home, lent in names.items()}


def table(tree: ast.Module) -> dict[str, tuple[str, ...]]:
    """The table given to `lazy.attach`."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    (call,) = (node for node in calls if ast.unparse(node.func) == "lazy.attach")
    names: dict[str, tuple[str, ...]] = ast.literal_eval(call.args[1])
    return names


def defined_in(module: str) -> set[str]:
    """The top-level names of a module of ours, and those that it lends itself. Reads its source, so
    that nothing heavy is loaded.
    """
    path = SOURCE.joinpath(*module.split(".")[1:])
    tree = ast.parse(
        (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    )
    names: set[str] = set()
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Assign():
                names.update(target.id for target in node.targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    for inner in ast.walk(tree):
        if isinstance(inner, ast.ImportFrom):
            names.update(alias.name for alias in inner.names if alias.asname == alias.name)
    return names


@pytest.mark.parametrize("path", FACES, ids=face_name)
def test_both_lists_of_a_face_agree(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert typed_names(tree) == table(tree)


@pytest.mark.parametrize("path", FACES, ids=face_name)
def test_the_home_modules_of_a_face_define_what_they_lend(path: Path) -> None:
    for home, names in table(ast.parse(path.read_text())).items():
        assert set(names) <= defined_in(home), home


@pytest.mark.parametrize("path", FACES, ids=face_name)
def test_no_name_of_a_face_is_also_a_submodule(path: Path) -> None:
    """Importing a submodule binds its name in the package: order would decide which of the two one
    gets.
    """
    names = {name for names in table(ast.parse(path.read_text())).values() for name in names}
    submodules = {
        child.stem for child in path.parent.iterdir() if child.suffix == ".py" or child.is_dir()
    }
    assert names & submodules == set()


# The helper itself, on a made-up package of ours and made-up packages of others.


FACE = """
from penstock import lazy

SPEED = 50
__getattr__, __dir__, __all__ = lazy.attach(
    __name__, {"penstock.plant.leaf": ("spin", "stop")}, eager=("SPEED",)
)
"""
Plant = Callable[[str], ModuleType]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    """Make `penstock.plant`, a face whose names live in a module of the given source, and import
    it.
    """
    before = set(sys.modules)
    monkeypatch.setattr(penstock, "__path__", [*penstock.__path__, str(tmp_path)])
    monkeypatch.setattr(lazy, "EXTRAS", {"turbine": "hydro", "rotor": "hydro"})
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "plant").mkdir()
    (tmp_path / "plant" / "__init__.py").write_text(FACE)

    def make(leaf: str) -> ModuleType:
        (tmp_path / "plant" / "leaf.py").write_text(leaf)
        return import_module("penstock.plant")

    yield make
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("turbine", "rotor") or name.startswith("penstock.plant"):
            del sys.modules[name]
    vars(penstock).pop("plant", None)


def install(folder: Path, package: str, source: str) -> None:
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(source)


def test_a_name_is_fetched_on_first_use_and_kept(plant: Plant) -> None:
    face = plant("spin, stop = object(), object()")
    assert "penstock.plant.leaf" not in sys.modules
    assert face.spin is sys.modules["penstock.plant.leaf"].spin
    assert vars(face)["spin"] is face.spin
    assert "stop" not in vars(face)


def test_from_import_and_star_import(plant: Plant) -> None:
    plant("spin, stop = 1, 2")
    names: dict[str, object] = {}
    exec("from penstock.plant import *", names)
    assert (names["spin"], names["stop"], names["SPEED"]) == (1, 2, 50)


def test_dir_and_all_hold_every_name_before_it_is_fetched(plant: Plant) -> None:
    face = plant("")
    assert face.__all__ == ["SPEED", "spin", "stop"]
    assert {*face.__all__, "__name__", "__doc__"} <= set(dir(face))
    assert dir(face) == sorted(dir(face))


def test_an_unknown_name_is_an_attribute_error_that_names_the_nearest(plant: Plant) -> None:
    face = plant("")
    with pytest.raises(AttributeError, match=r"'penstock\.plant' has no attribute 'spinn'.*'spin'"):
        _ = face.spinn
    assert not hasattr(face, "__wrapped__")
    with pytest.raises(ImportError, match="spinn"):
        exec("from penstock.plant import spinn")


def test_a_missing_extra_is_told_with_its_command(plant: Plant) -> None:
    face = plant("import turbine.blades")
    with pytest.raises(MissingExtraError) as caught:
        _ = face.spin
    assert str(caught.value).startswith("penstock.plant.spin needs the package 'turbine'")
    assert str(caught.value).endswith("pip install 'penstock[hydro]'")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, PenstockError)
    assert (caught.value.module, caught.value.extra) == ("turbine", "hydro")


def test_an_extra_that_is_installed_later_is_found(plant: Plant, tmp_path: Path) -> None:
    face = plant("import turbine; spin = turbine.SPIN")
    with pytest.raises(MissingExtraError):
        _ = face.spin
    install(tmp_path, "turbine", "SPIN = 7")
    assert face.spin == 7


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise OSError('libturbine.so.1: cannot open shared object file')", OSError),
        ("raise ImportError('undefined symbol: turn')", ImportError),
        ("import a_module_nobody_has", ModuleNotFoundError),
        # An extra of ours, but it is the other package that lacks it.
        ("import rotor", ModuleNotFoundError),
        ("import importlib; importlib.import_module('rotor')", ModuleNotFoundError),
        ("import turbine.blades", ModuleNotFoundError),
    ],
)
def test_a_broken_install_is_raised_as_it_is(
    plant: Plant, tmp_path: Path, source: str, error: type[Exception]
) -> None:
    install(tmp_path, "turbine", source)
    face = plant("import turbine")
    with pytest.raises(error) as caught:
        _ = face.spin
    assert type(caught.value) is error
    assert caught.value.__notes__ == ["while importing penstock.plant.leaf for penstock.plant.spin"]


def test_an_attribute_error_of_a_broken_install_is_not_taken_for_an_unknown_name(
    plant: Plant, tmp_path: Path
) -> None:
    install(tmp_path, "turbine", "import sys; sys.no_such_thing")
    plant("import turbine")
    with pytest.raises(ImportError, match="no_such_thing") as caught:
        exec("from penstock.plant import spin")
    assert isinstance(caught.value.__cause__, AttributeError)


def test_a_name_its_home_does_not_define_is_an_import_error(plant: Plant) -> None:
    face = plant("stop = 1")
    with pytest.raises(ImportError, match=r"penstock\.plant\.spin cannot be imported"):
        _ = face.spin


def test_our_own_missing_module_is_no_missing_extra(plant: Plant) -> None:
    face = plant("import penstock.no_such_module")
    with pytest.raises(ModuleNotFoundError) as caught:
        _ = face.spin
    assert not isinstance(caught.value, MissingExtraError)


def test_require_returns_the_module_asked_for(plant: Plant, tmp_path: Path) -> None:
    install(tmp_path, "turbine", "")
    (tmp_path / "turbine" / "blades.py").write_text("COUNT = 3")
    assert lazy.require("turbine.blades").COUNT == 3


@pytest.mark.usefixtures("plant")
def test_require_names_what_is_missing_and_who_asked() -> None:
    with pytest.raises(
        MissingExtraError, match=r"The mill needs the package 'turbine'.*'penstock\[hydro\]'"
    ):
        lazy.require("turbine.blades", needed_by="The mill")
    with pytest.raises(MissingExtraError, match=r"'wheel_of_wood'.*'penstock\[mill\]'"):
        lazy.require("wheel_of_wood", "mill")


@pytest.mark.usefixtures("plant")
def test_require_has_no_extra_for_a_package_it_does_not_know() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        lazy.require("wheel_of_wood")
    assert caught.value.name == "wheel_of_wood"


@pytest.mark.usefixtures("plant")
def test_a_module_blocked_by_none_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "turbine", None)
    with pytest.raises(MissingExtraError):
        lazy.require("turbine")


def test_every_extra_named_is_one_we_offer() -> None:
    project = (SOURCE.parents[1] / "pyproject.toml").read_text()
    offered = tomllib.loads(project)["project"]["optional-dependencies"]
    assert set(lazy.EXTRAS.values()) <= set(offered)


def test_every_package_that_a_plain_install_lacks_has_its_extra() -> None:
    plain = {
        *("click", "fsspec", "jinja2", "jsonschema_rs", "msgspec", "numpy", "openvino"),
        *("openvino_genai", "prometheus_client", "pyarrow", "python_multipart", "starlette"),
        *("tqdm", "uvicorn", "xxhash", "yaml"),
    }
    # Who tests an engine has the first, vLLM the second, and Pydantic, which calls us, the third.
    beside = {"pytest", "zmq", "pydantic_core"}
    imported: set[str] = set()
    for path in Path(penstock.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    foreign = imported - sys.stdlib_module_names - {"penstock"}
    assert foreign - plain - beside <= set(lazy.EXTRAS)


def test_what_asks_other_servers_names_its_extra() -> None:
    program = """
import sys
sys.modules |= dict.fromkeys(("aiohttp", "yarl", "multidict"))
import penstock
from penstock.batch import HttpRequestProcessorConfig, build_processor
for options in ({"engine": "remote"}, {"attach": "http://127.0.0.1:9"}, {"engine": "openai-batch"},
                {"engine": "anthropic-batch"}):
    try:
        penstock.run([{"a": "b"}], "out.jsonl", model="m", prompt="{a}", max_tokens=1, **options)
    except penstock.MissingExtraError as error:
        print(error)
try:
    list(build_processor(HttpRequestProcessorConfig(url="http://127.0.0.1:9"))([{"a": "b"}]))
except penstock.MissingExtraError as error:
    print(error)
"""
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert len(lines) == 5, done.stderr
    assert all(line.endswith("pip install 'penstock[http]'") for line in lines)
