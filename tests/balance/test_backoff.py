from penstock.balance.backoff import backoff


def test_it_doubles_up_to_the_longest_with_jitter():
    for failures, whole in ((1, 1), (2, 2), (3, 4), (4, 8), (5000, 8)):
        waits = {backoff(failures, first=1, longest=8) for _ in range(20)}
        assert whole / 2 <= min(waits) <= max(waits) <= whole
        assert len(waits) > 1


def test_no_first_is_no_wait():
    assert backoff(3, first=0, longest=8) == 0
