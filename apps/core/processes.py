"""Processes that end in time: with their parent, and when a signal asks them to stop."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection
from types import FrameType

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Make the kernel (Linux) kill this process when its parent ends. No effect on other systems.

    `parent` is the expected process id of the parent; if it differs, the parent has ended already. Without it, a parent
    that ended before this call goes unnoticed.
    """
    if sys.platform != "linux":
        return
    expected = os.getppid() if parent is None else parent
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != expected:
        os.kill(os.getpid(), signal.SIGKILL)


def on_stop_signal(
    call: Callable[[], object],
    *,
    numbers: Collection[int] = (signal.SIGTERM, signal.SIGINT),
    keep_handlers: bool = False,
) -> None:
    """Run `call` once, in a thread, when the process receives one of the signals. Call it in the main thread.

    A signal handler runs in the main thread between any two of its steps, and may take no lock, not even that of a
    `threading.Event` or of a new thread: the main thread may hold it, and would wait for itself for ever. The handler
    therefore only writes to a pipe. With `keep_handlers`, the handlers that are set now still run, after it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait() -> None:
        os.read(reader, 1)
        call()

    def handler(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writer, b"!")
        former = kept.get(number)
        if callable(former):
            former(number, frame)

    kept = {number: signal.getsignal(number) for number in numbers} if keep_handlers else {}
    threading.Thread(target=wait, name="stop-signal", daemon=True).start()
    for number in numbers:
        signal.signal(number, handler)
