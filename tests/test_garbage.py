import gc

import pytest

from penstock.garbage import NEW_OBJECTS, collected_seldom


@pytest.fixture(autouse=True)
def thresholds():
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_it_is_as_before_when_the_last_has_ended():
    gc.set_threshold(700, 10, 11)
    with collected_seldom():
        with collected_seldom():
            assert gc.get_threshold() == (NEW_OBJECTS, 10, 11)
        assert gc.get_threshold()[0] == NEW_OBJECTS
    assert gc.get_threshold() == (700, 10, 11)


@pytest.mark.parametrize("given", [(0, 10, 10), (10**6, 5, 5)])
def test_what_the_program_has_set_so_is_left(given):
    gc.set_threshold(*given)
    with collected_seldom():
        assert gc.get_threshold() == given
    assert gc.get_threshold() == given


def test_an_error_within_restores_it_too():
    gc.set_threshold(700, 10, 10)
    with pytest.raises(RuntimeError), collected_seldom():
        raise RuntimeError
    assert gc.get_threshold() == (700, 10, 10)
