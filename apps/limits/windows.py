"""Sliding windows: at most so many calls in any sixty seconds, counted exactly over all processes.

`take` counts a call, in one round trip to the store. A process that serves many small calls of one caller can lease a few slots
(`lease`) and asks the store again when they are used; a leased slot counts from the moment it is leased until a window after the
last moment at which it may be used, so the bound holds all the same. What a call with a leased slot states as `remaining` is the
number of leased slots that this process has left: other processes may have taken all others meanwhile.

While the store does not answer, calls are counted in this process alone (`Taken.shared` is False).
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from apps.limits.stores import Slots, Store, StoreAway, store

log = structlog.get_logger(__name__)

SECONDS = 60
LEASED_SLOTS = 6
LEASE_SECONDS = 60
AWAY_SECONDS = 1.0
"""How long no call asks a store that did not answer."""
MAX_WINDOWS = 50_000
"""Windows that a process remembers leases or local counts of; the least recently used goes first."""


@dataclass(frozen=True, slots=True)
class Window:
    """At most `limit` calls of `key` in any `SECONDS`."""

    key: str
    limit: int


@dataclass(frozen=True, slots=True)
class Taken:
    """State of a window after a call was counted or refused.

    `reset_at` (Unix seconds) is when the next slot becomes free, now when none is in use; `retry_after` the whole seconds until
    then. `shared` is False when only this process counted.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_at: int
    retry_after: int
    shared: bool = True


def take(window: Window) -> Taken:
    """Count one call of `window` over all processes. A window that is full does not count it."""
    try:
        slots = _ask(window, wanted=1)
    except StoreAway as error:
        return _count_here(window, str(error))
    return _taken(window, slots)


def lease(window: Window) -> Taken:
    """Like `take`, with a slot that this process leased before if there is one. Leases more while over half of the window is
    free."""
    held = _leases.use(window)
    if held is not None:
        return held
    try:
        slots = _ask(window, wanted=LEASED_SLOTS)
    except StoreAway as error:
        return _count_here(window, str(error))
    taken = _taken(window, slots)
    if len(slots.taken) > 1:
        _leases.keep(window, slots.taken[1:], taken)
    return taken


def give_back_leases() -> None:
    """Free all slots that this process leased and did not use. Called when it stops."""
    for key, names in _leases.drain():
        try:
            store().give_back(key, names)
        except StoreAway:
            return


def away_count() -> int:
    """Number of calls that this process counted alone because the store did not answer."""
    return _local.counted


def _ask(window: Window, *, wanted: int) -> Slots:
    if time.monotonic() < _local.away_until:
        raise StoreAway("away a moment ago")
    try:
        here: Store = store()
        return here.take(
            window.key,
            limit=window.limit,
            window=SECONDS * 1_000_000,
            wanted=wanted,
            lease=LEASE_SECONDS * 1_000_000 if wanted > 1 else 0,
        )
    except StoreAway:
        _local.away_until = time.monotonic() + AWAY_SECONDS
        raise


def _taken(window: Window, slots: Slots) -> Taken:
    left = max(0, slots.oldest + SECONDS * 1_000_000 - slots.now) if slots.used else 0
    return Taken(
        allowed=bool(slots.taken),
        limit=window.limit,
        remaining=max(0, window.limit - slots.used),
        reset_at=math.ceil((slots.now + left) / 1_000_000),
        retry_after=max(1, math.ceil(left / 1_000_000)),
    )


def _count_here(window: Window, why: str) -> Taken:
    log.error("rate windows are counted in this process alone: their store does not answer", error=why)
    return _local.count(window)


@dataclass(slots=True)
class _Held:
    """Leased slots of a window: each with its name and until when (monotonic seconds) it may be used. `taken` is the answer to
    the last lease."""

    taken: Taken
    slots: deque[tuple[str, float]]


class _Leases:
    """Slots that this process leased, by window."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[str, _Held] = OrderedDict()

    def use(self, window: Window) -> Taken | None:
        with self._lock:
            held = self._held.get(window.key)
            if held is None:
                return None
            now = time.monotonic()
            while held.slots and held.slots[0][1] <= now:
                held.slots.popleft()
            if not held.slots or held.taken.limit != window.limit:
                del self._held[window.key]
                return None
            held.slots.popleft()
            self._held.move_to_end(window.key)
            taken = held.taken
            return replace(
                taken,
                remaining=min(taken.remaining, len(held.slots)),
                reset_at=max(taken.reset_at, math.ceil(time.time())),
            )

    def keep(self, window: Window, names: tuple[str, ...], taken: Taken) -> None:
        # shorter than the store counts them: this clock began after the store's answer was made
        until = time.monotonic() + LEASE_SECONDS - 1
        with self._lock:
            # a call in another thread may have leased meanwhile
            held = self._held.setdefault(window.key, _Held(taken, deque()))
            held.taken = taken
            held.slots.extend((name, until) for name in names)
            while len(self._held) > MAX_WINDOWS:
                self._held.popitem(last=False)

    def drain(self) -> list[tuple[str, list[str]]]:
        with self._lock:
            held, self._held = self._held, OrderedDict()
        return [(key, [name for name, _ in each.slots]) for key, each in held.items() if each.slots]


class _Local:
    """Windows of this process, while the store is away."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        self._lock = threading.Lock()
        self._calls: OrderedDict[str, deque[float]] = OrderedDict()
        self.away_until = 0.0
        self.counted = 0

    def count(self, window: Window) -> Taken:
        with self._lock:
            now = self._clock()
            self.counted += 1
            calls = self._calls.setdefault(window.key, deque())
            self._calls.move_to_end(window.key)
            while len(self._calls) > MAX_WINDOWS:
                self._calls.popitem(last=False)
            while calls and calls[0] <= now - SECONDS:
                calls.popleft()
            allowed = len(calls) < window.limit
            if allowed:
                calls.append(now)
            # more than one must end after the limit was lowered
            frees = 0 if allowed else len(calls) - window.limit
            left = calls[frees] + SECONDS - now if calls else 0.0
        return Taken(
            allowed=allowed,
            limit=window.limit,
            remaining=max(0, window.limit - len(calls)),
            reset_at=math.ceil(time.time() + left),
            retry_after=max(1, math.ceil(left)),
            shared=False,
        )


_leases = _Leases()
_local = _Local()
os.register_at_fork(after_in_child=_leases.reset)
os.register_at_fork(after_in_child=_local.reset)
