"""Starts the agent, starts it again when it ends, and puts a newer one on trial before it is chosen.

The supervisor is the installed program and does little, so that it need not be upgraded itself: it makes no connections.
Its child reports over a pipe that a heartbeat of its was taken while what it runs is well.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from apps.runtime.agent.programs import Program, Programs
from apps.runtime.agent.state import StateError
from apps.runtime.agent.upgrade import EXIT_UPGRADE

TRIAL_SECONDS = 60.0
STOP_SECONDS = 20.0
LASTS_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
EXIT_USAGE = 2


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    ready: int
    ended: int
    started: float

    def close(self) -> None:
        os.close(self.ready)
        os.close(self.ended)


class Supervisor:
    """`arguments` are those of `run`; `log` writes a line of the log."""

    def __init__(
        self,
        programs: Programs,
        arguments: list[str],
        log: Callable[[str], None],
        trial_seconds: float = TRIAL_SECONDS,
    ) -> None:
        self._programs, self._arguments, self._log = programs, arguments, log
        self._trial_seconds = trial_seconds
        self._stopping = False
        self._woken, self._wake = os.pipe()

    def run(self) -> int:
        """Until a signal: the exit code. A first child that finds the command line wrong (exit 2) ends it too."""
        self._listen_to_signals()
        try:
            if self._programs.drop_left_behind() is not None:
                self._log("an upgrade was not seen to stand; what ran before it runs")
        except (OSError, StateError) as error:
            self._log(f"the programs folder: {error}")
        pause, first = FIRST_PAUSE, True
        while not self._stopping:
            child = self._start(self._programs.chosen())
            well, code = self._watch(child, None)
            while code == EXIT_UPGRADE and not self._stopping:
                code = self._try()
            if self._stopping:
                return 0
            if code == EXIT_USAGE and first and not well:
                return EXIT_USAGE
            first = False
            if code is None:
                continue
            if time.monotonic() - child.started > LASTS_SECONDS:
                pause = FIRST_PAUSE
            self._log(f"the agent ended with {code}, and is started again in {pause:.0f} s")
            self._sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        return 0

    # --- a trial ---

    def _try(self) -> int | None:
        """Run what is on trial; the exit code once it has ended. One that does not report in time is ended and refused."""
        program = self._programs.on_trial()
        if program is None or program.sha256 is None:
            return None
        self._log(f"agent {program.version} is on trial")
        child = self._start(program, trial=True)
        well, code = self._watch(child, self._trial_seconds)
        if self._stopping and not well:
            return code  # its trial is on disk still, and counts as one that it did not stand
        if not well:
            why = f"not heard of within {self._trial_seconds:.0f} s" if code in (0, None) else f"ended with {code}"
            self._noted(lambda sha256=program.sha256: self._programs.refuse(sha256, why))  # type: ignore[misc]
            self._log(f"agent {program.version} did not stand ({why}); {self._programs.chosen().version} runs again")
            return None
        self._noted(lambda: self._programs.proven(program))
        self._log(f"agent {program.version} stands and is chosen")
        if code is not None:
            return code
        return self._watch(child, None)[1]

    def _noted(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self._log(f"the programs folder can't be written: {error.strerror}")

    # --- children ---

    def _start(self, program: Program, *, trial: bool = False) -> _Child:
        ready, writer = os.pipe()
        extra = ["--supervised", str(writer), *(["--trial"] if trial else [])]
        process = subprocess.Popen(
            [*program.command(), "run", *self._arguments, *extra],
            stdin=subprocess.DEVNULL,
            pass_fds=(writer,),
            preexec_fn=_die_with_parent(os.getpid()),
        )
        os.close(writer)
        os.set_blocking(ready, False)
        return _Child(process, ready, os.pidfd_open(process.pid), time.monotonic())

    def _watch(self, child: _Child, seconds: float | None) -> tuple[bool, int | None]:
        """(was it well, exit code). With `seconds`: until it is well (the code is None then), or ended, or the time is over,
        when it is ended."""
        well = False
        deadline = None if seconds is None else time.monotonic() + seconds
        with selectors.DefaultSelector() as waiting:
            waiting.register(child.ended, selectors.EVENT_READ)
            waiting.register(child.ready, selectors.EVENT_READ)
            waiting.register(self._woken, selectors.EVENT_READ)
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                ready = {key.fd for key, _ in waiting.select(left)}
                if child.ready in ready:
                    if os.read(child.ready, 64):
                        well = True
                        if deadline is not None:
                            return True, None
                    else:
                        waiting.unregister(child.ready)
                if child.ended in ready:
                    break
                if self._woken in ready:
                    os.read(self._woken, 64)
                if self._stopping or (deadline is not None and time.monotonic() >= deadline):
                    self._end(child)
                    break
        code = child.process.wait()
        child.close()
        return well, code

    def _end(self, child: _Child) -> None:
        child.process.terminate()
        try:
            child.process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.process.kill()

    # --- signals ---

    def _listen_to_signals(self) -> None:
        os.set_blocking(self._wake, False)
        os.set_blocking(self._woken, False)

        def on_signal(number: int, frame: object) -> None:
            self._stopping = True
            with contextlib.suppress(OSError):
                os.write(self._wake, b"!")

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)

    def _sleep(self, seconds: float) -> None:
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._woken, selectors.EVENT_READ)
            if not self._stopping:
                waiting.select(seconds)


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def arrange() -> None:
        prctl(1, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return arrange
