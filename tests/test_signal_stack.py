"""A test does not handle signals on a stack that an earlier one has taken away."""

from __future__ import annotations

import ctypes

import pytest

import signal_stack
from signal_stack import SignalStack

_other = ctypes.create_string_buffer(1 << 16)


@pytest.mark.parametrize("which", ["first", "second"])
def test_every_test_has_the_same_stack_for_signals(
    stack_of_signals: SignalStack, which: str
) -> None:
    assert signal_stack.present().start == stack_of_signals.start
    SignalStack(ctypes.addressof(_other), 0, len(_other)).use()
    assert signal_stack.present().start == ctypes.addressof(_other)
