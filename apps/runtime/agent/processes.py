"""Children that end with the agent, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1

# Holds the read end of a pipe from the agent. When that ends, the agent is gone, and so is every group that it had named and
# not taken back.
_GUARD = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
groups = set()
for line in sys.stdin.buffer:
    (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


def dies_with_parent(number: int = signal.SIGKILL) -> Callable[[], None] | None:
    """A `preexec_fn` by which the kernel (Linux) signals the child when the thread that started it ends. None elsewhere."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)

    return arrange


class Guard:
    """A small process beside the agent that outlives its SIGKILL for a moment and takes the programs it was running with it.

    The kernel's parent-death signal reaches only the program itself; the guard reaches all that the program started. Safe
    from several threads; the process is started when first needed, and again when somebody ended it.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()

    def watch(self, group: int) -> None:
        """End `group` when the agent ends."""
        with self._turn:
            self._groups.add(group)
            if self._process is None or not self._tell(b"+%d\n" % group):
                self._start()

    def end(self, process: subprocess.Popen[bytes]) -> int:
        """End the group that `process` leads, whatever of it is left, and reap it; its exit code."""
        # while the leader is not reaped, its number can't be anybody else's
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with self._turn:
            self._groups.discard(process.pid)
            self._tell(b"-%d\n" % process.pid)
        return process.wait()

    def _tell(self, line: bytes) -> bool:
        try:
            if self._process is None or self._process.stdin is None:
                return False
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError:
            return False
        return True

    def _start(self) -> None:
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        for group in self._groups:
            self._tell(b"+%d\n" % group)

    def close(self) -> None:
        """End the guard, and with it whatever is still named."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                if self._process.stdin is not None:
                    self._process.stdin.close()
            self._process.wait(timeout=10)
            self._process = None
