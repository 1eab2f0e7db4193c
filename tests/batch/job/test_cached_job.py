"""Jobs that share the answers of deterministic requests."""

import pytest

from jobs import ask, numbered, settled
from penstock.batch.cache.shared import model_identity
from penstock.errors import ConfigError, EngineError


@pytest.fixture
def cache(tmp_path):
    return {"cache": tmp_path / "cache"}


async def test_jobs_share_answers(tmp_path, make_engine, cache):
    first = await ask(numbered(40), None, make_engine(), **cache)
    engine = make_engine()
    result = await ask([*numbered(50), *numbered(2)], tmp_path / "o.jsonl", engine, **cache)
    assert sorted(engine.asked) == [f"text {number}" for number in range(40, 50)]
    assert (result.counts.from_cache, result.counts.deduplicated) == (40, 2)
    assert result.counts.completion_tokens == 10 * len("text 40")
    assert settled(result.rows())[:40] == settled(first.rows())


@pytest.mark.parametrize(
    ("before", "after", "asked"),
    [
        ({}, {"max_tokens": 5}, 3),
        ({}, {"prompt": "{text}!"}, 3),
        ({"seed": 1, "temperature": 1.0}, {"seed": 1, "temperature": 1.0}, 0),
        ({"seed": 1, "temperature": 1.0}, {"seed": 2, "temperature": 1.0}, 3),
        ({"temperature": 1.0}, {"temperature": 1.0}, 3),
        ({"max_tokens": 5}, {"max_tokens": 5, "on_length": "raise"}, 3),
        ({}, {"order": "done", "result_prefix": "x_"}, 0),
    ],
)
async def test_only_the_same_request_is_answered_from_it(make_engine, cache, before, after, asked):
    await ask(numbered(3), None, make_engine(), **before, **cache)
    engine = make_engine()
    await ask(numbered(3), None, engine, **after, **cache)
    assert len(engine.asked) == asked


async def test_failures_are_not_in_it(make_engine, cache):
    await ask(numbered(3), None, make_engine(lambda text: EngineError("no luck")), **cache)
    engine = make_engine()
    result = await ask(numbered(3), None, engine, **cache)
    assert (result.counts.ok, result.counts.from_cache) == (3, 0)


def test_a_model_is_known_by_its_files_and_what_decides(tmp_path, make_engine):
    def identity(**changes):
        engine = make_engine()
        engine.model_source = str(tmp_path / "model")
        engine.engine_kwargs = changes
        return model_identity(engine)

    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "weights"
    weights.write_bytes(b"a" * 100)
    first = identity()
    assert identity() == first
    assert identity(dtype="f32") != first
    assert identity(base_url="http://other") != first
    copy = tmp_path / "copy"
    (tmp_path / "model").rename(copy)
    copy.rename(tmp_path / "model")
    assert identity() == first
    weights.write_bytes(b"a" * 99 + b"b")
    assert identity() != first


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache_mb": 5}, "cache_mb: is of a cache"),
        ({"cache": "x", "cache_mb": 0}, "cache_mb: must be at least 1"),
        ({"cache": "x", "cache_days": 0.0}, "cache_days: must be above 0"),
        ({"cache": "x", "adapter": "a"}, "no answers of adapters"),
        ({"cache": "x", "prompt": None, "speak": "text", "audio_dir": "d"}, "no spoken files"),
        ({"cache": ""}, "cache: must not be empty"),
        ({"cache": __file__}, "cache: must be a directory, and is a file"),
        ({"cache": "x", "engine": "remote", "engine_kwargs": {"base_url": "http://h/v1"}}, "model"),
    ],
)
async def test_what_cannot_be_cached_is_refused(make_engine, options, words):
    engine = options.pop("engine", None) or make_engine()
    if engine == "remote":
        options["model"] = "auto"
    with pytest.raises(ConfigError, match=words):
        await ask(numbered(2), None, engine, **options)
