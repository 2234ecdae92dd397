"""Where sliding windows are kept: Redis, or the SQLite file of the `limits` cache. Both keep one timestamp for each slot in use.

A store needs one round trip and is exact under concurrency: of N + k parallel calls, N get one of N slots.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import redis
from django.conf import settings
from django.core.cache import caches
from redis.exceptions import RedisError

from apps.limits.cache import SqliteCache

CACHE = "limits"


class StoreAway(Exception):
    """The store does not answer."""


@dataclass(frozen=True, slots=True)
class Slots:
    """The answer of a store. Times are microseconds since the epoch, by the store's clock.

    `taken` names the slots that were taken, none when the window was full; `used` counts those in use after that, the taken ones
    included; `oldest` is when the one in use was taken whose end leaves one free: the first to end, or a later one after the limit
    was lowered. It is `now` when none is in use.
    """

    now: int
    used: int
    oldest: int
    taken: tuple[str, ...]


class Store(Protocol):
    """Keeps slots by key."""

    def take(self, key: str, *, limit: int, window: int, wanted: int, lease: int) -> Slots:
        """Take `wanted` slots of `limit`, each in use for `window` + `lease` microseconds from now; one, if the window would be more
        than half full with more of them; none when it is full. Raises StoreAway."""

    def give_back(self, key: str, slots: Sequence[str]) -> None:
        """End these slots, which were not used. Raises StoreAway."""


def store() -> Store:
    """The store that the `limits` cache of the settings names."""
    cache = caches[CACHE]
    if isinstance(cache, SqliteCache):
        return SqliteStore(cache)
    named: Any = settings.CACHES[CACHE]
    return _redis_store(str(named["LOCATION"]))


@functools.lru_cache(maxsize=4)
def _redis_store(url: str) -> RedisStore:
    return RedisStore(redis.Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0))


# a slot's score is the last microsecond at which it may be used, so a leased one counts at least as long as the call made with it
_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local limit, window, wanted, lease = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - window))
local used = redis.call('ZCARD', KEYS[1])
local count = 0
if used < limit then count = 1 end
if wanted > 1 and 2 * (used + wanted) <= limit then count = wanted end
if count == 1 then lease = 0 end
local until_when = string.format('%.0f', now + lease)
local taken = {}
for n = 1, count do
  taken[n] = ARGV[5] .. ':' .. n
  redis.call('ZADD', KEYS[1], until_when, taken[n])
end
if count > 0 then
  -- a slot that was leased before may count for longer than the one that is taken now
  local last = tonumber(redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2])
  redis.call('PEXPIRE', KEYS[1], math.ceil((last - now + window) / 1000) + 1000)
end
local at = 0
if count == 0 then at = math.max(0, used - limit) end
local first = redis.call('ZRANGE', KEYS[1], at, at, 'WITHSCORES')
return {string.format('%.0f', now), used + count, first[2] or string.format('%.0f', now), taken}
"""


class RedisStore:
    """Sorted sets, one for each window."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._script = client.register_script(_TAKE)

    def take(self, key: str, *, limit: int, window: int, wanted: int, lease: int) -> Slots:
        """See `Store`."""
        name = secrets.token_urlsafe(9)
        try:
            now, used, oldest, taken = self._script(keys=[_name(key)], args=[limit, window, wanted, lease, name])
        except (RedisError, OSError) as error:
            raise StoreAway(type(error).__name__) from error
        return Slots(int(now), int(used), int(float(oldest)), tuple(each.decode() for each in taken))

    def give_back(self, key: str, slots: Sequence[str]) -> None:
        """See `Store`."""
        try:
            self._client.zrem(_name(key), *slots)
        except (RedisError, OSError) as error:
            raise StoreAway(type(error).__name__) from error


def _name(key: str) -> str:
    return f"byteor:window:{key}"


class SqliteStore:
    """Rows of the cache's file, one for each slot. Times are those of this host."""

    def __init__(self, cache: SqliteCache) -> None:
        self._cache = cache

    def take(self, key: str, *, limit: int, window: int, wanted: int, lease: int) -> Slots:
        """See `Store`."""
        try:
            with _transaction(self._cache.connection()) as connection:
                now = time.time_ns() // 1000
                connection.execute("DELETE FROM slots WHERE key = ? AND until <= ?", (key, now - window))
                used = int(connection.execute("SELECT count(*) FROM slots WHERE key = ?", (key,)).fetchone()[0])
                count = 1 if used < limit else 0
                if wanted > 1 and 2 * (used + wanted) <= limit:
                    count = wanted
                until = now + (lease if count > 1 else 0)
                name = secrets.token_urlsafe(9)
                taken = tuple(f"{name}:{n}" for n in range(count))
                connection.executemany(
                    "INSERT INTO slots (key, until, name) VALUES (?, ?, ?)", [(key, until, slot) for slot in taken]
                )
                first = connection.execute(
                    "SELECT until FROM slots WHERE key = ? ORDER BY until LIMIT 1 OFFSET ?",
                    (key, 0 if count else max(0, used - limit)),
                ).fetchone()
        except (sqlite3.Error, OSError) as error:
            raise StoreAway(type(error).__name__) from error
        return Slots(now, used + count, int(first[0]) if first is not None else now, taken)

    def give_back(self, key: str, slots: Sequence[str]) -> None:
        """See `Store`."""
        try:
            with _transaction(self._cache.connection()) as connection:
                connection.executemany("DELETE FROM slots WHERE key = ? AND name = ?", [(key, slot) for slot in slots])
        except (sqlite3.Error, OSError) as error:
            raise StoreAway(type(error).__name__) from error


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Alone with the file from the first statement on. Threads of one process wait in turn; SQLite lets those that wait for
    each other sleep."""
    with _one_thread:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


def _after_fork() -> None:
    global _one_thread
    _one_thread = threading.Lock()


_one_thread = threading.Lock()
os.register_at_fork(after_in_child=_after_fork)
