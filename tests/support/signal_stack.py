"""The stack on which this thread handles signals."""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None, use_errno=True)


class SignalStack(ctypes.Structure):
    """The kernel's `stack_t`."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    def use(self) -> None:
        """Let this thread handle signals here from now on."""
        assert _libc.sigaltstack(ctypes.byref(self), None) == 0, ctypes.get_errno()


def present() -> SignalStack:
    """The stack in use. Its start is None if that is the thread's ordinary stack."""
    stack = SignalStack()
    assert _libc.sigaltstack(None, ctypes.byref(stack)) == 0, ctypes.get_errno()
    return stack
