import pytest

from penstock.engines.deltas import BatchedDeltas, in_batches, mapped
from penstock.types import Delta

A, B, C = Delta(text="a"), Delta(text="b"), Delta(text="c", finish_reason="stop")


class Source:
    def __init__(self, *batches):
        self._batches = batches
        self.closed = False

    async def batches(self):
        try:
            for batch in self._batches:
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            self.closed = True


async def one_by_one():
    for delta in (A, B, C):
        yield delta


async def test_batches_are_read_one_by_one():
    assert [delta async for delta in BatchedDeltas(Source([A, B], [C]).batches())] == [A, B, C]


async def test_batches_stay_together_between_layers():
    assert [batch async for batch in in_batches(BatchedDeltas(Source([A, B], [C]).batches()))] == [
        [A, B],
        [C],
    ]


async def test_a_plain_generator_gives_batches_of_one():
    assert [batch async for batch in in_batches(one_by_one())] == [[A], [B], [C]]


async def test_mapping_keeps_batches():
    def upper(delta):
        return Delta(text=delta.text.upper())

    changed = mapped(Source([A, B], [C]).batches(), upper)
    assert [[delta.text for delta in batch] async for batch in changed] == [["A", "B"], ["C"]]


async def test_an_error_comes_after_what_came_before_it():
    deltas = BatchedDeltas(Source([A, B], ValueError("broken")).batches())
    assert [await anext(deltas), await anext(deltas)] == [A, B]
    with pytest.raises(ValueError, match="broken"):
        await anext(deltas)


@pytest.mark.parametrize(
    "wrap", [lambda batches: batches, lambda batches: mapped(batches, lambda delta: delta)]
)
async def test_closing_early_closes_the_source(wrap):
    source = Source([A, B], [C])
    deltas = BatchedDeltas(wrap(source.batches()))
    assert await anext(deltas) == A
    await deltas.aclose()
    assert source.closed
    with pytest.raises(StopAsyncIteration):
        await anext(deltas)
