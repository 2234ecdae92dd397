"""Cross-process notifications from the database, so that waiting threads do not poll.

PostgreSQL: `LISTEN`/`NOTIFY` on one channel. SQLite: `PRAGMA data_version`, which changes at every commit of another
connection. Each process has one listener thread, started at the first wait and again after a fork. While the listener
can't reach the database, waiters poll every half second.

A process can also keep a cache of database rows current: `subscribe` registers a callback for every notification, and
`delivered_within` returns whether all notifications up to a time were delivered.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import structlog
from django.conf import settings
from django.db import connection

from apps.core.pooler import plain_parameters

log = structlog.get_logger(__name__)

CHANNEL = "byteor"
EVERYTHING = "*"
SQLITE_POLL_SECONDS = 0.01
FALLBACK_POLL_SECONDS = 0.5
RECONNECT_AFTER = 0.5
CONNECT_SECONDS = 5
CONFIRM_EVERY = 0.3
MOST_CHANNELS = 100_000
"""Channels of which a process remembers how often each was notified. There is one for each agent, also for those long deleted."""

_subscribers: list[Callable[[str | None], None]] = []


class _Listener:
    """The thread that receives notifications, and the waiters that it wakes."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.condition = threading.Condition()
        self.counts: Counter[str] = Counter()
        self.everything = 0
        self.waiting = 0
        self.listening = threading.Event()
        self.confirmed = float("-inf")
        self.stopped = False
        self.vendor = connection.vendor
        self.parameters: dict[str, Any] = plain_parameters() if self.vendor == "postgresql" else {}
        self.path = str(connection.settings_dict["NAME"])
        self.thread = threading.Thread(target=self._run, name="byteor-wake", daemon=True)
        self.thread.start()

    def count(self, channel: str) -> int:
        return self.counts[channel] + self.everything

    def sleep(self, channel: str, seen: int, seconds: float) -> bool:
        """Block until `channel` was notified after `seen`, or shutdown. Returns whether that happened in time."""
        with self.condition:
            return self.condition.wait_for(lambda: self.count(channel) != seen or _stopping.is_set(), seconds)

    def publish(self, channel: str | None) -> None:
        # counted first: a subscriber that reads the count when it is called finds it changed
        with self.condition:
            if channel is None:
                self.everything += 1
            else:
                self.counts[channel] += 1
                if len(self.counts) > MOST_CHANNELS:
                    # higher than any count before: every waiter looks once more, and none misses a notification
                    self.everything += max(self.counts.values()) + 1
                    self.counts.clear()
        for subscriber in tuple(_subscribers):
            subscriber(channel)
        with self.condition:
            self.condition.notify_all()

    def _run(self) -> None:
        listen = self._listen_postgres if self.vendor == "postgresql" else self._listen_sqlite
        while not self.stopped:
            try:
                listen()
            except Exception as error:  # any driver error: the waiters poll meanwhile
                log.warning("notification listener lost its database connection", error=type(error).__name__)
            self.listening.clear()
            self.confirmed = float("-inf")
            self.publish(None)
            time.sleep(RECONNECT_AFTER)

    def _listen_postgres(self) -> None:
        import psycopg

        direct = settings.BYTEOR_DATABASE_DIRECT_URL
        # LISTEN needs a session, which a pooler does not keep
        opened = (
            psycopg.connect(direct, autocommit=True, connect_timeout=CONNECT_SECONDS)
            if direct
            else psycopg.connect(**{"connect_timeout": CONNECT_SECONDS, **self.parameters}, autocommit=True)
        )
        with opened as raw:
            raw.execute(f"LISTEN {CHANNEL}")
            self.listening.set()
            self.publish(None)
            while not self.stopped:
                began = time.monotonic()
                raw.execute("SELECT 1")
                for message in raw.notifies(timeout=0):
                    self._receive(message.payload)
                # the server sends pending notifications before it answers
                self.confirmed = began
                for message in raw.notifies(timeout=CONFIRM_EVERY):
                    self._receive(message.payload)

    def _receive(self, channel: str) -> None:
        self.publish(None if channel == EVERYTHING else channel)

    def _listen_sqlite(self) -> None:
        raw = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, check_same_thread=False)
        try:
            last = raw.execute("PRAGMA data_version").fetchone()[0]
            self.listening.set()
            self.publish(None)
            while not self.stopped:
                with self.condition:
                    if not self.waiting:
                        self.condition.wait_for(lambda: self.waiting or self.stopped)
                now = raw.execute("PRAGMA data_version").fetchone()[0]
                if now != last:
                    last = now
                    self.publish(None)
                time.sleep(SQLITE_POLL_SECONDS)
        finally:
            raw.close()


_lock = threading.Lock()
_listener: _Listener | None = None
_stopping = threading.Event()


def _current_listener() -> _Listener:
    global _listener
    with _lock:
        if _listener is None or _listener.pid != os.getpid() or _listener.path != str(connection.settings_dict["NAME"]):
            if _listener is not None and _listener.pid == os.getpid():
                _listener.stopped = True
                _listener.publish(None)
            _listener = _Listener()
        return _listener


def _after_fork() -> None:
    global _lock, _listener, _stopping
    _lock, _listener, _stopping = threading.Lock(), None, threading.Event()


os.register_at_fork(after_in_child=_after_fork)


def notify(*channels: str) -> None:
    """Wake the waiters of `channels` in every process when the current transaction commits. One statement."""
    if connection.vendor == "postgresql" and channels:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, c) FROM unnest(%s::text[]) AS c", [CHANNEL, list(channels)])


def ticket(channel: str) -> int:
    """Return the number of notifications of `channel` so far. Take it, read, then `wait(since=it)`: none in between is
    missed.

    Does not wait for the listener, which notifies every channel once it has reached the database.
    """
    return _current_listener().count(channel)


class Watch:
    """Keeps this process listening while an event loop waits by subscription instead of in `wait`."""

    def __init__(self) -> None:
        self._listener = _listener or _current_listener()
        with self._listener.condition:
            self._listener.waiting += 1
            self._listener.condition.notify_all()

    def notified_since(self, channel: str, seen: int) -> bool:
        """Return whether `channel` was notified since the ticket `seen`."""
        return self._listener.stopped or self._listener.count(channel) != seen

    def close(self) -> None:
        """End the watch."""
        with self._listener.condition:
            self._listener.waiting -= 1


def wait(channel: str, timeout: float, *, ready: Callable[[], bool] | None = None, since: int | None = None) -> bool:
    """Block this thread until `channel` is notified (after the ticket `since`, if given), or at most `timeout` seconds.

    With `ready`, until it returns True: it is called first, and again at each notification. Returns True when notified
    (or ready), False at the timeout or at shutdown. Spurious wake-ups are possible.
    """
    deadline = time.monotonic() + timeout
    listener = _current_listener()
    with listener.condition:
        listener.waiting += 1
        listener.condition.notify_all()
    try:
        if not listener.listening.is_set():
            listener.listening.wait(min(1.0, timeout))
        seen = listener.count(channel) if since is None else since
        if ready is not None and ready():
            return True
        while not _stopping.is_set():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            step = left if listener.listening.is_set() else min(left, FALLBACK_POLL_SECONDS)
            woken = listener.sleep(channel, seen, step)
            seen = listener.count(channel)
            if _stopping.is_set():
                return False
            if ready is None:
                if woken:
                    return True
            elif ready():
                return True
        return False
    finally:
        with listener.condition:
            listener.waiting -= 1


def subscribe(subscriber: Callable[[str | None], None]) -> None:
    """Register a callback that gets each notified channel, or None when any channel may have changed.

    It is called in the listener's thread and must be quick.
    """
    if subscriber not in _subscribers:
        _subscribers.append(subscriber)


def unsubscribe(subscriber: Callable[[str | None], None]) -> None:
    """Remove a callback."""
    if subscriber in _subscribers:
        _subscribers.remove(subscriber)


def delivered_within(seconds: float) -> bool:
    """Return whether every notification committed up to `seconds` ago was delivered. Always False on SQLite.

    Starts this process's listener if there is none.
    """
    listener = _listener
    if listener is None or listener.pid != os.getpid() or listener.stopped:
        listener = _current_listener()
    return time.monotonic() - listener.confirmed < seconds


def stop_all() -> None:
    """End every wait of this process at once; later ones return immediately."""
    _stopping.set()
    if _listener is not None:
        _listener.publish(None)


def stopping() -> bool:
    """Return True once this process is shutting down."""
    return _stopping.is_set()


def close() -> None:
    """Stop the listener and close its database connection; the next wait starts a new one. Blocks until it has ended."""
    global _listener
    with _lock:
        listener, _listener = _listener, None
    if listener is not None:
        listener.stopped = True
        listener.publish(None)
        listener.thread.join(timeout=5)
    _stopping.clear()
