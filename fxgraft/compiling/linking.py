"""No fork while a thread is inside of the dynamic linker.

A child has the linker's lists as they were at that moment, for ever: code that it loads later fails with
"undefined symbol: _Unwind_Resume". Two of our threads could be there: one that loads code which a helper has
made; and a worker of OpenMP whose thread is over, as the first ``pthread_exit`` of a process loads libgcc_s
(glibc 2.36: ``python -m benchmarks.fork_race``, in which 30 to 50 of 2,000 forks fail so).
"""

from __future__ import annotations

import ctypes
import os
import threading

quiet = threading.RLock()
"""Held while code is loaded off the training thread, and by a fork."""


def is_busy() -> bool:
    """Whether a fork would have to wait: another thread is loading code."""
    if not quiet.acquire(blocking=False):
        return True
    quiet.release()
    return False


def _before_fork() -> None:
    quiet.acquire()
    # What needs libgcc_s to end a thread has it from here on; musl has no such function, and no such need.
    if (backtrace := getattr(ctypes.CDLL(None), "backtrace", None)) is not None:
        backtrace((ctypes.c_void_p * 1)(), 1)


# Of all forks, so those of a DataLoader's workers too.
os.register_at_fork(before=_before_fork, after_in_parent=quiet.release, after_in_child=quiet.release)
