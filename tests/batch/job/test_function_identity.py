"""Functions as texts that change when the functions do, and only then."""

from functools import partial

import pytest

from penstock.batch.job.identity import function_identity


def made(source, **names):
    """The function `f` of a module with this source."""
    module = {"__name__": "users_module", **names}
    exec(source, module)
    return module["f"]


def test_it_names_the_function():
    assert function_identity(None) is None
    assert (function_identity(made("def f(row): return {}")) or "").startswith("users_module.f ")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(row): return {'a': 1}", "def f(row): return {'a': 2}"),
        ("def f(row): return row['a']", "def f(row): return row['b']"),
        ("def f(row, most=1): return {'most': most}", "def f(row, most=2): return {'most': most}"),
        ("ASK = 'a'\ndef f(row): return {'p': ASK}", "ASK = 'b'\ndef f(row): return {'p': ASK}"),
        ("K = ('a', 1)\ndef f(row): return {'p': K}", "K = ('a', 2)\ndef f(row): return {'p': K}"),
        (
            "def g(r): return 1\ndef f(row): return g(row)",
            "def g(r): return 2\ndef f(row): return g(row)",
        ),
        (
            "def m(a):\n return lambda row: a\nf = m('x')",
            "def m(a):\n return lambda row: a\nf = m('y')",
        ),
        (
            "A = 1\ndef f(row): return [A for _ in row]",
            "A = 2\ndef f(row): return [A for _ in row]",
        ),
        (
            "class C:\n def __call__(self, row): return 1\nf = C()",
            "class C:\n def __call__(self, row): return 2\nf = C()",
        ),
    ],
)
def test_a_changed_function_is_another(one, other):
    assert function_identity(made(one)) == function_identity(made(one))
    assert function_identity(made(one)) != function_identity(made(other))


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("def f(row):\n\n  # Why.\n  text = (\n    row['a'])\n  return {'p': text}", True),
        ("def f(row: dict) -> dict:\n  text: str = row['a']\n  return {'p': text}", True),
        ("def f(row):\n  words = row['a']\n  return {'p': words}", False),
        ("def f(r):\n  text = r['a']\n  return {'p': text}", False),
    ],
)
def test_names_are_a_part_of_the_code_and_comments_are_none(other, same):
    one = "def f(row):\n  text = row['a']\n  return {'p': text}"
    assert (function_identity(made(one)) == function_identity(made(other))) is same


def test_what_a_partial_was_given_is_a_part_of_it():
    ask = made("def f(row, prompt): return {'p': prompt}")
    assert function_identity(partial(ask, prompt="a")) == function_identity(
        partial(ask, prompt="a")
    )
    assert function_identity(partial(ask, prompt="a")) != function_identity(
        partial(ask, prompt="b")
    )


def test_sets_have_no_order():
    """0 and 8 collide in a small table, so that the two sets are equal and iterate differently."""
    one, other = frozenset([0, 8]), frozenset([8, 0])
    assert (list(one), one) != (list(other), other)
    ask = made("def f(row): return row in {0, 8}")
    codes = [ask.__code__.replace(co_consts=(None, group)) for group in (one, other)]
    functions = [type(ask)(code, ask.__globals__, "f") for code in codes]
    assert function_identity(functions[0]) == function_identity(functions[1])


def test_what_changes_while_it_runs_is_no_part_of_it():
    counting = made(
        "n = 0\nseen = []\ndef f(row):\n global n\n n += 1\n seen.append(row)\n return {}"
    )
    before = function_identity(counting)
    counting({})
    assert function_identity(counting) == before


def test_functions_that_call_each_other_come_to_an_end():
    assert function_identity(made("def g(r): return f(r)\ndef f(row): return g(row)"))
