"""What a fresh interpreter loads: the untimed half of `bench/import_time.py`."""

import penstock
from import_time import EVERY_LIGHT_NAME, HEAVY, modules_added


def test_the_package_itself_loads_nothing() -> None:
    assert modules_added("import penstock") <= {"__future__"}


def test_looking_around_loads_nothing() -> None:
    code = "import penstock; dir(penstock); penstock.__all__; hasattr(penstock, '__wrapped__')"
    assert modules_added(code) <= {"__future__"}


def test_every_public_name_is_light() -> None:
    assert modules_added(EVERY_LIGHT_NAME) & set(HEAVY) == set()


def test_every_public_name_comes_where_the_heavy_packages_are_not_installed() -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r})); {EVERY_LIGHT_NAME}"
    modules_added(blocked)  # raises if a name does not come


def test_public_names() -> None:
    assert vars(penstock)["__all__"] == [
        "ConfigError",
        "Job",
        "MissingExtraError",
        "PenstockError",
        "__version__",
        "arun",
        "run",
    ]
