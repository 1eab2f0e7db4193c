from penstock.kv import cached_blocks
from penstock.kv.cached_blocks import CachedBlocks, Change


async def told(changes):
    return await anext(changes)


async def test_names_are_held_when_the_block_at_their_end_is():
    blocks = CachedBlocks()
    blocks.asked([1, 2, 3, 4], [10, 20])  # two names a block
    blocks.stored([10])
    assert blocks.held() == [1, 2]
    blocks.stored([20])
    assert blocks.held() == [1, 2, 3, 4]
    blocks.removed([20])
    assert blocks.held() == [1, 2]


async def test_few_names_for_many_blocks():
    blocks = CachedBlocks()
    blocks.asked([1, 2], [10, 20, 30, 40, 50])
    blocks.stored([10, 20, 30])
    assert blocks.held() == [1]
    blocks.stored([40, 50])
    assert blocks.held() == [1, 2]


async def test_a_prompt_of_no_full_block_says_nothing():
    blocks = CachedBlocks()
    blocks.asked([1], [])
    blocks.asked([], [10])
    blocks.stored([10])
    assert blocks.held() == []


async def test_a_watcher_is_told_all_and_then_what_changes():
    blocks = CachedBlocks()
    blocks.asked([1, 2], [10, 20])
    blocks.stored([10])
    changes = blocks.changes()
    assert await told(changes) == [Change([1], anew=True)]
    blocks.stored([20, 30])
    blocks.removed([10])
    blocks.asked([7], [30])  # cached before its name was known
    blocks.stored([20])  # nothing new
    assert await told(changes) == [Change([2]), Change([], [1]), Change([7])]
    blocks.clear()
    assert await told(changes) == [Change([], anew=True)]
    await changes.aclose()
    blocks.stored([10])


async def test_a_slow_watcher_is_told_everything_anew(monkeypatch):
    monkeypatch.setattr(cached_blocks, "MOST_PENDING", 2)
    blocks = CachedBlocks()
    blocks.asked([1, 2, 3], [10, 20, 30])
    changes = blocks.changes()
    await told(changes)
    for block in (10, 20, 30):
        blocks.stored([block])
    assert await told(changes) == [Change([1, 2, 3], anew=True)]


async def test_what_is_known_is_bounded():
    blocks = CachedBlocks(capacity=2)
    blocks.asked([1, 2], [10, 20])
    blocks.stored([10, 20])
    changes = blocks.changes()
    await told(changes)
    blocks.asked([1, 3], [10, 30])
    assert await told(changes) == [Change([], [2])]
    assert blocks.held() == [1]


async def test_a_name_follows_the_prompt_that_has_it_now():
    blocks = CachedBlocks()
    blocks.asked([1], [10])
    blocks.asked([1], [11])  # nobody held the first
    blocks.stored([11])
    assert blocks.held() == [1]
    blocks.asked([1], [12])  # the one that is held is as good
    blocks.removed([12])
    assert blocks.held() == [1]
