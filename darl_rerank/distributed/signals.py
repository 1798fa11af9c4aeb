"""Signal handlers that Ray would displace."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator

# What a Java virtual machine handles itself: its compiled code reads through null pointers and goes on in the handler.
_FAULTS = (signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, *([signal.SIGBUS] if hasattr(signal, "SIGBUS") else []))
# More than any system's `struct sigaction` takes. It begins with the handler's address.
_SIZE = 1024


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Whoever handled a signal before the block handles it afterwards.

    SIGTERM: Ray's own handler would end the process with another exit code, and past what we clean up. Faults: Ray
    reports them and ends the process, and `ray.shutdown` leaves no handler at all; Lucene's Java in the same process
    would crash at the next null check of its compiled code. Where nobody handled a fault, Ray's handler stays.
    """
    terminate = signal.getsignal(signal.SIGTERM)
    faults = {number: action for number in _FAULTS if (action := _action(number)) is not None}
    try:
        yield
    finally:
        for number, action in faults.items():
            ctypes.CDLL(None).sigaction(int(number), action, None)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)


def _action(number: signal.Signals) -> ctypes.Array[ctypes.c_char] | None:
    """What the process does at a signal, as the C library's `sigaction` gives it; None for the system's default."""
    if os.name != "posix":
        return None
    found = ctypes.create_string_buffer(_SIZE)
    ctypes.CDLL(None).sigaction(int(number), None, found)
    return found if int.from_bytes(found.raw[: ctypes.sizeof(ctypes.c_void_p)], "little") else None
