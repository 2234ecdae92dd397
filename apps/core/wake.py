"""Waking what waits, in any process: the database says that something changed, nobody polls it for the answer.

PostgreSQL: `LISTEN`/`NOTIFY` on one channel. SQLite: `PRAGMA data_version`, which moves at every commit of another
connection. One listener thread a process, started when somebody waits, made anew after a fork. While the listener can't reach
the database, waiters look for themselves every half second.

What a process remembers of the database can hang on this too: `subscribe` is told of every change, and `heard_within` says
whether all that was committed up to so long ago has been told.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import structlog
from django.db import connection

log = structlog.get_logger(__name__)

CHANNEL = "byteor"
EVERYTHING = "*"
SQLITE_LOOK_EVERY = 0.01
FALLBACK_LOOK_EVERY = 0.5
RECONNECT_AFTER = 0.5
CONFIRM_EVERY = 0.3

_subscribers: list[Callable[[str | None], None]] = []


class _Listener:
    """The thread that hears and the waiters that it wakes."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.condition = threading.Condition()
        self.heard: defaultdict[str, int] = defaultdict(int)
        self.everything = 0
        self.waiting = 0
        self.listening = threading.Event()
        self.confirmed = float("-inf")
        self.stopped = False
        self.vendor = connection.vendor
        self.parameters: dict[str, Any] = (
            dict(connection.get_connection_params()) if self.vendor == "postgresql" else {}
        )
        self.path = str(connection.settings_dict["NAME"])
        self.thread = threading.Thread(target=self._run, name="byteor-wake", daemon=True)
        self.thread.start()

    def count(self, channel: str) -> int:
        return self.heard[channel] + self.everything

    def sleep(self, channel: str, seen: int, seconds: float) -> bool:
        """Until `channel` was told of more than `seen` times, or shutdown; whether it was."""
        with self.condition:
            return self.condition.wait_for(lambda: self.count(channel) != seen or _stopping.is_set(), seconds)

    def tell(self, channel: str | None) -> None:
        for subscriber in _subscribers:
            subscriber(channel)
        with self.condition:
            if channel is None:
                self.everything += 1
            else:
                self.heard[channel] += 1
            self.condition.notify_all()

    def _run(self) -> None:
        hear = self._hear_postgres if self.vendor == "postgresql" else self._hear_sqlite
        while not self.stopped:
            try:
                hear()
            except Exception as error:  # whatever the driver raises: the waiters look for themselves meanwhile
                log.warning("wake listener lost the database", error=type(error).__name__)
            self.listening.clear()
            self.confirmed = float("-inf")
            self.tell(None)
            time.sleep(RECONNECT_AFTER)

    def _hear_postgres(self) -> None:
        import psycopg

        wanted = {
            k: v for k, v in self.parameters.items() if k not in ("cursor_factory", "context", "prepare_threshold")
        }
        with psycopg.connect(**wanted, autocommit=True) as raw:
            raw.execute(f"LISTEN {CHANNEL}")
            self.listening.set()
            self.tell(None)
            while not self.stopped:
                began = time.monotonic()
                raw.execute("SELECT 1")
                for message in raw.notifies(timeout=0):
                    self._hear(message.payload)
                # the server hands over what it has for us before it answers
                self.confirmed = began
                for message in raw.notifies(timeout=CONFIRM_EVERY):
                    self._hear(message.payload)

    def _hear(self, channel: str) -> None:
        self.tell(None if channel == EVERYTHING else channel)

    def _hear_sqlite(self) -> None:
        raw = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, check_same_thread=False)
        try:
            last = raw.execute("PRAGMA data_version").fetchone()[0]
            self.listening.set()
            while not self.stopped:
                with self.condition:
                    if not self.waiting:
                        self.condition.wait_for(lambda: self.waiting or self.stopped)
                now = raw.execute("PRAGMA data_version").fetchone()[0]
                if now != last:
                    last = now
                    self.tell(None)
                time.sleep(SQLITE_LOOK_EVERY)
        finally:
            raw.close()


_lock = threading.Lock()
_listener: _Listener | None = None
_stopping = threading.Event()


def _here() -> _Listener:
    global _listener
    with _lock:
        if _listener is None or _listener.pid != os.getpid() or _listener.path != str(connection.settings_dict["NAME"]):
            if _listener is not None and _listener.pid == os.getpid():
                _listener.stopped = True
                _listener.tell(None)
            _listener = _Listener()
        return _listener


def _after_fork() -> None:
    global _lock, _listener, _stopping
    _lock, _listener, _stopping = threading.Lock(), None, threading.Event()


os.register_at_fork(after_in_child=_after_fork)


def notify(*channels: str) -> None:
    """Wake whoever waits on one of `channels`, in every process, when the present transaction commits. One statement."""
    if connection.vendor == "postgresql" and channels:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, c) FROM unnest(%s::text[]) AS c", [CHANNEL, list(channels)])


def ticket(channel: str) -> int:
    """What was heard on `channel` so far. Take it, look, and `wait(since=it)`: what is told in between is not missed."""
    listener = _here()
    if not listener.listening.is_set():
        listener.listening.wait(1.0)
    return listener.count(channel)


def wait(channel: str, timeout: float, *, ready: Callable[[], bool] | None = None, since: int | None = None) -> bool:
    """Block this thread until `channel` is notified (after the ticket `since`, if given), or at most `timeout` seconds.

    With `ready`, until it answers True: it is asked first, and again at each wake. True when woken (or ready), False at the
    timeout or at shutdown. May wake without cause.
    """
    deadline = time.monotonic() + timeout
    listener = _here()
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
            step = left if listener.listening.is_set() else min(left, FALLBACK_LOOK_EVERY)
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
    """Let `subscriber` be told of each channel that is notified, from any process; None: of anything at all. It is called in
    the listener's thread and must be quick."""
    if subscriber not in _subscribers:
        _subscribers.append(subscriber)


def heard_within(seconds: float) -> bool:
    """Whether every notification committed up to `seconds` ago has been told to the subscribers. Never on SQLite, which
    can't say so. Starts the listener of this process when there is none."""
    listener = _listener
    if listener is None or listener.pid != os.getpid() or listener.stopped:
        listener = _here()
    return time.monotonic() - listener.confirmed < seconds


def stop_all() -> None:
    """End every wait of this process at once; later ones don't begin."""
    _stopping.set()
    if _listener is not None:
        _listener.tell(None)


def stopping() -> bool:
    """True once this process is shutting down."""
    return _stopping.is_set()


def close() -> None:
    """End the listener and its database connection; the next wait starts a new one. Waits until it is gone."""
    global _listener
    with _lock:
        listener, _listener = _listener, None
    if listener is not None:
        listener.stopped = True
        listener.tell(None)
        listener.thread.join(timeout=5)
    _stopping.clear()
