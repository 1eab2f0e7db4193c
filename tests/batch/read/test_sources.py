import asyncio
import gc
import threading

import pytest

from penstock.batch.read import open_source
from penstock.batch.read.sources import AsyncRows, check_column, read_ahead
from penstock.errors import ConfigError, InputError


async def test_rows_come_one_by_one_and_none_is_lost():
    taken = []

    def generate():
        for number in range(5):
            taken.append(number)
            yield {"n": number}

    source = await open_source(generate())
    assert taken == [0]
    assert source.columns == ("n",)
    batches = source.batches()
    assert next(batches)[0].values == {"n": 0}
    assert taken == [0]
    assert [batch[0].index for batch in batches] == [1, 2, 3, 4]


async def test_lists_know_their_length_and_can_be_begun_anywhere():
    source = await open_source([{"n": n} for n in range(5)])
    assert source.rows == 5
    found = [(row.index, row.values) for batch in source.batches(3) for row in batch]
    assert found == [(3, {"n": 3}), (4, {"n": 4})]


async def test_a_row_that_is_no_dict_is_a_faulty_row():
    source = await open_source([{"n": 0}, "text"])
    assert [row.fault for batch in source.batches() for row in batch] == [
        None,
        "row 1: a str, not a dict",
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["a.jsonl", "b.jsonl"], "a list of str is no data set.*a glob names several files"),
        ((1, 2), "a tuple of int is no data set: each row is a dict"),
    ],
)
async def test_a_list_without_one_row_is_refused(given, told):
    with pytest.raises(InputError, match=told):
        await open_source(given)


async def test_asynchronous_rows():
    async def generate():
        for number in range(4):
            yield {"n": number}

    source = await open_source(generate())
    assert isinstance(source, AsyncRows)
    assert source.first == {"n": 0}
    assert [batch[0].values async for batch in source.arrive(1)] == [{"n": 1}, {"n": 2}, {"n": 3}]


class Loader:
    """As loaders of data are, some of which have a length by name only."""

    def __len__(self):
        raise TypeError("no length")

    def __iter__(self):
        return iter([{"n": 0}, {"n": 1}])


class Broken:
    def __iter__(self):
        raise OSError("lost")


class AsyncBroken:
    def __aiter__(self):
        raise OSError("lost")


async def test_a_loader_without_a_length_is_read():
    source = await open_source(Loader())
    assert source.rows is None
    assert [row.values for batch in source.batches() for row in batch] == [{"n": 0}, {"n": 1}]


@pytest.mark.parametrize("rows", [Broken(), AsyncBroken()])
async def test_rows_that_cannot_be_begun_are_told(rows):
    with pytest.raises(InputError, match="reading the rows failed: OSError: lost"):
        await open_source(rows)


async def test_a_generator_runs_in_one_thread_which_ends_with_the_source():
    threads = []

    def generate():
        for number in range(600):  # more than one reading takes
            threads.append(threading.current_thread())
            yield {"n": number}

    source = await open_source(generate())
    rows = [row async for batch in read_ahead(source) for row in batch]
    assert len(rows) == 600
    assert len(set(threads)) == 1
    assert threads[0] is not threading.main_thread()
    await source.close()
    threads[0].join(30)
    assert not threads[0].is_alive()


async def test_the_thread_of_a_source_that_nobody_closes_ends_with_it():
    threads = []

    def generate():
        threads.append(threading.current_thread())
        yield {"n": 0}

    source = await open_source(generate())
    del source
    await asyncio.sleep(0)  # the event loop lets go of what it gave
    gc.collect()
    threads[0].join(30)
    assert not threads[0].is_alive()


async def test_an_error_in_the_callers_code_says_so():
    def generate():
        yield {"n": 0}
        raise KeyError("lost")

    source = await open_source(generate())
    with pytest.raises(InputError, match=r"reading the rows failed: KeyError: 'lost'"):
        list(source.batches())


@pytest.mark.parametrize("thing", [{"a": 1}, b"bytes", 7])
async def test_what_is_no_data_set(thing):
    with pytest.raises(InputError, match="is no data set"):
        await open_source(thing)


async def test_rows_that_are_too_deep_are_bad_rows():
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    circle: dict[str, object] = {"a": 1}
    circle["b"] = circle
    source = await open_source([{"a": 1}, {"a": deep}, circle, {"a": [[2]]}])
    found = [row for batch in source.batches() for row in batch]
    assert [row.values for row in found] == [{"a": 1}, None, None, {"a": [[2]]}]
    assert found[1].fault == "row 1: it is nested more than 256 deep"


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_a_header_with_commas_that_part_nothing_is_told(mark):
    def told(column, *names):
        with pytest.raises(ConfigError, match="the data has no column") as caught:
            check_column(column, names, "prompt")
        return str(caught.value)

    header = f"price, net{mark} ticket".split(",")
    assert f"a first line 'sep={mark}' says so" in told("ticket", *header)
    assert f"a first line 'sep={mark}' says so" in told("price, net", *header)
    assert "sep=" not in told("other", *header)
