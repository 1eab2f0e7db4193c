import ast
from pathlib import Path

import pytest

from penstock import errors
from penstock.errors import (
    ConfigError,
    MissingExtraError,
    PenstockError,
    RequestError,
    by_kind,
    class_and_text,
    context_overflow,
    nearest,
    text_of,
)


def subclasses(cls):
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


TREE = [cls for cls in subclasses(PenstockError) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_every_error_is_in_the_drawing_and_has_a_status(cls):
    assert cls.__name__ in errors.__doc__
    assert 400 <= cls.status < 600


def test_no_error_stands_outside_the_tree():
    names = {"PenstockError", *(cls.__name__ for cls in TREE)}
    home = Path(errors.__file__)
    strays = [
        f"{path.name}: {node.name}"
        for path in home.parent.rglob("*.py")
        if path != home
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith("_")  # which only gives a known one a second base
        and names & {base.id for base in node.bases if isinstance(base, ast.Name)}
    ]
    assert not strays


@pytest.mark.parametrize(
    "cls", [cls for cls in TREE if "kind" in cls.__dict__], ids=lambda cls: cls.__name__
)
def test_errors_cross_a_process_border_by_their_kind(cls):
    error = by_kind(cls.kind, "what happened")
    assert type(error) is cls
    assert str(error) == "what happened"


@pytest.mark.parametrize(
    ("prompt", "answer", "message"),
    [
        (
            20009,
            100,
            "prompt is too long: 20009 tokens > 4096 maximum. This model's maximum context length"
            " is 4096 tokens; the prompt has 20009 and 100 more were asked for.",
        ),
        (
            4096,
            None,
            "prompt is too long: 4096 tokens > 4095 maximum. This model's maximum context length"
            " is 4096 tokens; the prompt has 4096.",
        ),
        (
            15,
            4096,
            "This model's maximum context length is 4096 tokens; the prompt has 15 and 4096 more"
            " were asked for.",
        ),
        (
            None,
            None,
            "prompt is too long: more than 4096 tokens. This model's maximum context length is"
            " 4096 tokens; the prompt alone has more.",
        ),
    ],
)
def test_a_context_overflow_has_the_words_that_clients_know(prompt, answer, message):
    error = context_overflow(4096, prompt, answer)
    assert str(error) == message
    assert error.param == ("max_tokens" if prompt == 15 else None)


def test_kinds_are_unique():
    kinds = [cls.kind for cls in TREE if "kind" in cls.__dict__]
    assert len(kinds) == len(set(kinds))


def test_an_unknown_kind_is_an_engine_error():
    assert type(by_kind("nobody knows", "text")) is errors.EngineError


def test_config_errors_name_field_and_hint():
    error = ConfigError(
        "unknown key 'modle'", field="job.modle", hint=nearest("modle", ["model", "prompt"])
    )
    assert str(error) == "job.modle: unknown key 'modle'. Did you mean 'model'?"


def test_what_a_client_sent_is_quoted_in_part():
    name = "x" * 1_000_000
    error = RequestError(f"unknown parameter '{name}'. {nearest(name, ['model'])}", param=name)
    assert len(str(error)) == 2001
    assert len(error.param or "") == 201


def test_nearest_lists_what_there_is_when_nothing_is_near():
    assert nearest("zzz", ["b", "a"]) == "Known: a, b"
    assert nearest("zzz", []) == ""


def test_a_missing_extra_names_the_command():
    assert "pip install 'penstock[ray]'" in str(MissingExtraError("ray", "ray"))
    assert isinstance(MissingExtraError("ray", "ray"), ImportError)


def test_a_text_is_one_line_that_can_be_written():
    class Silent(Exception):
        def __str__(self):
            raise ValueError

    assert class_and_text(ValueError(" one \n\n two\r\nthree")) == "ValueError: one two three"
    assert class_and_text(ValueError()) == "ValueError"
    assert class_and_text(Silent()) == "Silent: (its text cannot be made)"
    assert text_of(ValueError("\ud800")).encode() == b"\\ud800"
    assert len(text_of(ValueError("x" * 10_000_000))) == 2001
