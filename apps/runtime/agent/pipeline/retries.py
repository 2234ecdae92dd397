"""Trying again what can't be done now, and reporting why a pipeline waits."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from apps.runtime.agent.pipeline.folder import FileRefused
from apps.runtime.agent.pipeline.sinks import SinkFailed
from apps.runtime.ops.effects import EffectFailed

QUICK_TRIES = 5
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
T = TypeVar("T")
_OWN_WORDS = (EffectFailed, SinkFailed, FileRefused)
_TRIED_AGAIN = (EffectFailed, SinkFailed, FileRefused, OSError)


class Stopped(Exception):
    """The pipeline was stopped while something did not work."""


def words_for(error: Exception) -> str:
    """What is wrong, with the code `disk_full` where that is what it is. Holds nothing of any record."""
    if isinstance(error, OSError) and error.errno in FULL:
        return f"disk_full: {error.strerror}"
    return str(error) if isinstance(error, _OWN_WORDS) else f"{type(error).__name__}: {error}"


class Troubles:
    """Why lanes don't go on, by lane. Safe from several threads."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._mutex = threading.Lock()
        self._words: dict[str, str] = {}

    def note(self, lane: str, words: str) -> None:
        """The lane waits, and this is why."""
        with self._mutex:
            new = words not in self._words.values()
            self._words[lane] = words
        if new:
            self._log(f"the pipeline waits: {words}")

    def clear(self, lane: str) -> None:
        """The lane goes on."""
        with self._mutex:
            waited = self._words.pop(lane, None)
            goes_on = waited is not None and not self._words
        if goes_on:
            self._log("the pipeline goes on")

    def of(self, lane: str) -> bool:
        """Does this lane wait?"""
        return lane in self._words

    def words(self) -> str:
        """What is wrong, the same thing once; empty when nothing is."""
        with self._mutex:
            return "; ".join(dict.fromkeys(self._words.values()))


class Retries:
    """Does things until they work, or `stop` is set; what keeps it from that is in `troubles`."""

    def __init__(self, stop: threading.Event, troubles: Troubles) -> None:
        self._stop, self.troubles = stop, troubles

    def until_done(self, lane: str, what: Callable[[], T], *, once_more: bool = False) -> T:
        """Do `what`, again and again until it works. Raises Stopped when the pipeline is stopped before it did; with
        `once_more` it is tried a last time then, for it may have become possible during a pause."""
        pause, failed = FIRST_PAUSE, 0
        while True:
            stopping = self._stop.is_set()
            try:
                done = what()
            except _TRIED_AGAIN as error:
                failed += 1
                if failed >= QUICK_TRIES:
                    self.troubles.note(lane, words_for(error))
                if stopping or (self._stop.wait(pause) and not once_more):
                    raise Stopped from error
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                if failed:
                    self.troubles.clear(lane)
                return done

    def few_times(self, lane: str, what: Callable[[], T], until: float, tries: int = 3) -> T:
        """Do `what`, a few times, once while the lane is in trouble already, and not after `until`.

        Raises Stopped when it did not work.
        """
        for failed in range(1, tries + 1):
            try:
                return what()
            except _TRIED_AGAIN as error:
                if self._stop.is_set():
                    raise Stopped from error
                if failed == tries or self.troubles.of(lane) or time.monotonic() >= until:
                    self.troubles.note(lane, words_for(error))
                    raise Stopped from error
                if self._stop.wait(FIRST_PAUSE * 2 ** (failed - 1)):
                    raise Stopped from error
        raise AssertionError("a try returns or raises")
