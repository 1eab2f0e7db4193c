import pytest

from penstock.loadtest.target import is_address


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
