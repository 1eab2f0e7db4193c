from hypothesis import given, strategies as st

from penstock.kv.prefix_index import BLOCK_SIZE, PrefixIndex, block_hashes


def tokens(blocks, first=0):
    return [first + i % 7 for i in range(blocks * BLOCK_SIZE)]


def test_only_full_blocks_have_a_hash():
    assert block_hashes(tokens(1)[:-1]) == []
    assert len(block_hashes([*tokens(2), 1, 2])) == 2


def test_a_block_is_named_by_all_that_comes_before_it():
    one, other = block_hashes(tokens(2)), block_hashes([9, *tokens(2)[1:]])
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_match_counts_leading_blocks_only():
    index = PrefixIndex(10)
    blocks = block_hashes(tokens(3))
    index.insert(blocks[1:])
    assert index.match(blocks) == 0
    index.insert(blocks[:1])
    assert index.match(blocks) == 3


def test_the_least_recently_used_block_leaves():
    index = PrefixIndex(2)
    a, b, c = (block_hashes(tokens(1, first)) for first in (0, 10, 20))
    index.insert(a)
    index.insert(b)
    assert index.match(a) == 1  # used: now b is the oldest
    index.insert(c)
    assert (index.match(a), index.match(b), index.match(c)) == (1, 0, 1)


def test_a_cache_without_room_holds_nothing():
    index = PrefixIndex(0)
    index.insert(block_hashes(tokens(2)))
    assert len(index) == 0


@given(st.lists(st.integers(0, 3), max_size=200), st.lists(st.integers(0, 3), max_size=200))
def test_match_is_the_common_prefix_in_blocks(left, right):
    index = PrefixIndex(1000)
    index.insert(block_hashes(left, 4))
    common = 0
    while common < min(len(left), len(right)) and left[common] == right[common]:
        common += 1
    assert index.match(block_hashes(right, 4)) == common // 4
