import pytest

from penstock.errors import EngineStartError
from penstock.serve.api.errors import public, without_paths


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no such file: /home/ann/models/x.gguf", "no such file: x.gguf"),
        ("'/tmp/a b/c d.bin' is damaged", "'c d.bin' is damaged"),
        ('"/usr/lib/x.so" and `/etc/passwd`', '"x.so" and `passwd`'),
        ("open(/tmp/a/b.bin): failed", "open(b.bin): failed"),
        ("file:///tmp/a/b.bin", "b.bin"),
        ("~/models/x and ~ann/models/y", "x and y"),
        ("./models/x or ../x/y", "x or y"),
        ("/tmp/", "tmp"),
        ("/tmp", "tmp"),
        ("model=/tmp/x/y, at:/tmp/x", "model=y, at:x"),
        # What is no path of this machine stays.
        (
            "no path /v1/chat; /docs lists those that exist",
            "no path /v1/chat; /docs lists those that exist",
        ),
        (
            "http://127.0.0.1:8000/v1/models and s3://bucket/a/b",
            "http://127.0.0.1:8000/v1/models and s3://bucket/a/b",
        ),
        ("org/model and 3/4 and and/or", "org/model and 3/4 and and/or"),
    ],
)
def test_paths_become_their_last_part(text, shown):
    assert without_paths(text, {}) == shown


def test_models_are_called_by_their_names():
    sources = {"models/secret/llama": "llama"}
    assert (
        without_paths("'models/secret/llama' could not be loaded", sources)
        == "'llama' could not be loaded"
    )


def test_an_error_stays_of_its_kind():
    error = EngineStartError("no /tmp/model.bin")
    error.retry_after = 3.0
    shown = public(error, {})
    assert type(shown) is EngineStartError
    assert (str(shown), shown.retry_after, str(error)) == ("no model.bin", 3.0, "no /tmp/model.bin")
    assert public(shown, {}) is shown
