"""Limits on calls to a store that may be slow or hang: time per call and concurrent calls."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from apps.core.errors import StorageUnavailable

T = TypeVar("T")

SLOW_SECONDS = 1.0
"""While every slot is in use and the oldest call is older than this, further calls are refused at once."""


class Guard:
    """Runs at most `places` calls at a time in this process, each with a time limit for its caller.

    A call runs in its own thread, because no socket timeout limits a whole exchange. A call whose caller timed out
    continues until its own timeouts end it, and occupies its slot until then. A store that hangs therefore costs a
    process at most `places` threads, and every other caller gets an error.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._pid = os.getpid()
        self._reset()

    def _reset(self) -> None:
        self._free = threading.Condition()
        self._begun: dict[int, float] = {}
        self._tokens = itertools.count()

    def call(self, act: Callable[[], T], *, seconds: float, name: str) -> T:
        """Return what `act` returns, or raise what it raises.

        Raises StorageUnavailable if no slot is free or `act` does not finish in time.
        """
        if self._pid != os.getpid():  # forked: the parent's threads do not exist in this process
            self._pid = os.getpid()
            self._reset()
        token = self._acquire(name, seconds)
        outcome: list[T] = []
        failure: list[BaseException] = []
        ended = threading.Event()

        def run() -> None:
            try:
                outcome.append(act())
            except BaseException as error:  # re-raised in the caller
                failure.append(error)
            finally:
                with self._free:
                    self._begun.pop(token, None)
                    self._free.notify()
                ended.set()

        thread = threading.Thread(target=run, name=f"storage-{name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            with self._free:
                self._begun.pop(token, None)
            raise
        if not ended.wait(seconds):
            raise StorageUnavailable(f"{name}: no response in {seconds:g} s")
        if failure:
            raise failure[0]
        return outcome[0]

    def _acquire(self, name: str, seconds: float) -> int:
        until = time.monotonic() + seconds
        with self._free:
            while len(self._begun) >= self._places:
                now = time.monotonic()
                if now - min(self._begun.values()) > SLOW_SECONDS or now > until:
                    raise StorageUnavailable(f"{name}: earlier calls are still waiting for the store")
                self._free.wait(0.1)
            token = next(self._tokens)
            self._begun[token] = time.monotonic()
            return token
