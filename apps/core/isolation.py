"""Processing of many items where a failing item does not stop the others: sweeps, purges, expiries, outboxes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import structlog

from apps.core import clock
from apps.core.db import database_away, reason

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=Hashable)

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 300.0
REMEMBERED = 10_000


@dataclass(slots=True)
class Tally:
    """Number of items that failed, including those still in their back-off."""

    failed: int = 0


@dataclass(slots=True)
class _Failure:
    times: int
    not_before: float


class _Failures:
    """This process's recently failed items and when each may be retried. Bounded; the oldest is dropped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: OrderedDict[tuple[str, Hashable], _Failure] = OrderedDict()

    def waits(self, name: str, item: Hashable, now: float) -> bool:
        with self._lock:
            failure = self._rows.get((name, item))
        return failure is not None and now < failure.not_before

    def add(self, name: str, item: Hashable, now: float) -> float:
        """Record a failure. Returns the seconds to the next retry."""
        with self._lock:
            former = self._rows.pop((name, item), None)
            times = former.times + 1 if former is not None else 1
            pause = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(times - 1, 30))
            self._rows[name, item] = _Failure(times, now + pause)
            if len(self._rows) > REMEMBERED:
                self._rows.popitem(last=False)
        return pause

    def remove(self, name: str, item: Hashable) -> None:
        if self._rows:
            with self._lock:
                self._rows.pop((name, item), None)


_failures = _Failures()
_tally: ContextVar[Tally | None] = ContextVar("byteor_tally", default=None)


@contextlib.contextmanager
def counting() -> Iterator[Tally]:
    """Count the items that fail in every `for_each` inside the block."""
    tally = Tally()
    token = _tally.set(tally)
    try:
        yield tally
    finally:
        _tally.reset(token)


def for_each(
    name: str,
    items: Iterable[T],
    act: Callable[[T], int],
    *,
    seconds: float | None = None,
) -> int:
    """Call `act(item)` for each of `items` and return the sum of the results.

    An item that raises is logged with `name`, counted, and skipped until its back-off is over (1 s, doubled each time,
    at most 5 min). The others continue. Only an error that means that the whole database is unavailable is raised,
    because the others would fail too. Each call must be its own transaction. With `seconds`, no item starts later than
    that, so that a long list is processed in several runs; failed items do not use up the others' time again.
    """
    until = None if seconds is None else time.monotonic() + seconds
    tally = _tally.get()
    done = 0
    for item in items:
        now = clock.now().timestamp()
        if _failures.waits(name, item, now):
            if tally is not None:
                tally.failed += 1
            continue
        if until is not None and time.monotonic() > until:
            break
        try:
            done += act(item)
        except Exception as error:  # any error of one item affects that item only
            if database_away(error):
                raise
            pause = _failures.add(name, item, clock.now().timestamp())
            if tally is not None:
                tally.failed += 1
            log.error(
                "item failed; continuing with the others",
                sweep=name,
                item=str(item),
                reason=reason(error),
                next_try_seconds=pause,
                exc_info=error,
            )
        else:
            _failures.remove(name, item)
    return done
