"""Children that end with the agent, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1

# Holds the read end of a pipe from the agent. When that ends, the agent is gone, and so is every group that it had named and
# not released.
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


def _dies_with_parent(announce: int) -> Callable[[], None]:
    """A `preexec_fn`: the child names its group to the guard, and the kernel (Linux) kills it when its parent ends."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None
    parent = os.getpid()

    def arrange() -> None:
        # before anything of the program runs: there is no moment at which nothing would end it
        os.write(announce, b"+%d\n" % os.getpid())
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return arrange


class Guard:
    """A small process that outlives the agent's SIGKILL for a moment and ends the programs that it was running.

    The kernel's parent-death signal reaches only the program itself; the guard reaches all that the program started. Safe
    from several threads; the process is started when first needed, and again when it was ended from outside.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, argv: tuple[str, ...], *, cwd: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Run a program that does not outlive the agent, as the leader of a session of its own; `end` it in any case.

        Its standard input and error are pipes, its standard output goes nowhere. OSError when it can't be started.
        """
        with self._turn:
            return subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env=dict(environment),
                start_new_session=True,
                preexec_fn=_dies_with_parent(self._ready()),
            )

    def end(self, process: subprocess.Popen[bytes]) -> int:
        """End the group that `process` leads, whatever of it is left, and reap it; its exit code."""
        # while the leader is not reaped, its number can't be another process's
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with self._turn, contextlib.suppress(OSError):
            os.write(self._ready(), b"-%d\n" % process.pid)
        return process.wait()

    def _ready(self) -> int:
        """The file that the guard reads."""
        if self._process is None or self._process.poll() is not None:
            self._close()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GUARD],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def _close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
