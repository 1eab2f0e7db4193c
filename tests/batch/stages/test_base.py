"""What `map_kwargs` ask for, in Ray's words."""

from types import SimpleNamespace

import pytest

from penstock.batch.stages.base import workers
from penstock.errors import ConfigError


def pool(least, most):
    return SimpleNamespace(min_size=least, max_size=most)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({}, 1),
        ({"concurrency": None, "num_cpus": 0.5}, 1),
        ({"concurrency": 3}, 3),
        ({"concurrency": (2, 4)}, 4),
        ({"concurrency": 1, "compute": pool(1, 5)}, 5),
        ({"compute": pool(2, float("inf"))}, 2),
    ],
)
def test_workers(given, count):
    assert workers(given, "here") == count


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"concurency": 1}, r"here: unknown key 'concurency'. Did you mean 'concurrency'"),
        ({"concurrency": 0}, r"here.concurrency: must be a positive number, not 0"),
        ({"concurrency": (0, 2)}, r"here.concurrency: must be a positive number"),
        ({"concurrency": ()}, r"here.concurrency: must be a positive number"),
        ({"batch_size": 0}, r"here.batch_size: must be a positive number"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(ConfigError, match=message):
        workers(given, "here")
