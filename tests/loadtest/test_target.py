from contextlib import nullcontext
from typing import Any

import pytest

from penstock.errors import EngineStartError
from penstock.loadtest.target import address_of, is_address


@pytest.mark.parametrize(
    ("target", "is_one"),
    [
        ("http://127.0.0.1:8000", True),
        ("localhost:8000", True),
        ("localhost:8000/v1", True),
        ("demo", False),
        ("null", False),
        ("./llama-ir", False),
        ("org/name", False),
        ("a:b", False),
    ],
)
def test_addresses(target, is_one):
    assert is_address(target) is is_one


def test_the_server_of_a_model_needs_no_key_and_takes_up_no_batches(monkeypatch, tmp_path):
    monkeypatch.setenv("PENSTOCK_API_KEYS", "sk-secret")
    monkeypatch.setenv("PENSTOCK_ADMIN_KEYS", "sk-admin")
    started: dict[str, Any] = {}

    class Process:
        stdout = iter(["Listening on http://127.0.0.1:5 (demo)\n"])

        def __init__(self, argv, env, **options):
            started.update(argv=argv, env=env)

        def __enter__(self):
            return self

        def __exit__(self, *_): ...

        def poll(self): ...

        def send_signal(self, number): ...

        def wait(self, seconds): ...

    monkeypatch.setattr("subprocess.Popen", Process)
    monkeypatch.setattr("penstock.loadtest.target.opened", lambda *_: nullcontext())
    with address_of("demo") as url:
        assert url == "http://127.0.0.1:5"
    assert "--no-batches" in started["argv"]
    assert "PATH" in started["env"]
    assert not [name for name in started["env"] if "KEYS" in name]


def test_a_model_that_cannot_be_loaded_is_no_server_that_does_not_answer(capfd):
    with (
        pytest.raises(EngineStartError, match=r"\./none cannot be served: see above"),
        address_of("./none"),
    ):
        raise AssertionError("it was measured")
    assert "there is no model './none'" in capfd.readouterr().err
