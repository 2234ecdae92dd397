"""The keys cached in this process, with their agents, and their validity."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from django.conf import settings
from django.db import connection

from apps.agents.models import AgentKey
from apps.agents.services.directives import NumberedDirective
from apps.core import wake

MAX_NOTIFICATION_LAG_SECONDS = 0.9
"""Maximum age of a change of which this process was not notified."""
MAX_CACHE_SECONDS = 600.0
"""After this time a cached key is read again, regardless of notifications."""
MAX_CACHED_KEYS = 20_000
"""A key with its agent, environment and project takes about 5 KB."""
MAX_CHANNELS = 200_000

Mark = int


@dataclass(slots=True)
class CachedKey:
    """A key with its agent, as read after `mark`, and the agent's directive once it was needed.

    `channels` notify changes of any of them.
    """

    key: AgentKey
    mark: Mark
    channels: tuple[str, str, str]
    read_at: float
    directive: NumberedDirective | None = None


class _Memory:
    """Cached keys by SHA-256, and for each channel the count at its last notification."""

    def __init__(self) -> None:
        self.open = False
        self.count: Mark = 0
        self.reset()

    def reset(self) -> None:
        """Drop all keys, including those being read now."""
        self.oldest_valid = self.count = self.count + 1
        self.keys: dict[str, CachedKey] = {}
        self.notified: dict[str, Mark] = {}

    def invalidate(self, channel: str | None) -> None:
        """Invalidate what was read of `channel` before (None: of any channel). Called in the listener's thread."""
        count = self.count + 1
        if channel is None or len(self.notified) >= MAX_CHANNELS:
            self.reset()
            return
        if channel.startswith(("agent:", "keys:", "environment:")):
            self.notified[channel] = count
            self.count = count

    def holds(self, cached: CachedKey) -> bool:
        """Whether nothing that was read changed since, as far as this process was notified."""
        notified, mark = self.notified, cached.mark
        return (
            self.oldest_valid <= mark
            and all(notified.get(channel, 0) <= mark for channel in cached.channels)
            and time.monotonic() - cached.read_at < MAX_CACHE_SECONDS
        )

    def remember(self, cached: CachedKey) -> None:
        keys = self.keys
        keys.pop(cached.key.sha256, None)
        while len(keys) >= MAX_CACHED_KEYS:
            keys.pop(next(iter(keys)), None)
        keys[cached.key.sha256] = cached


_memory = _Memory()
os.register_at_fork(after_in_child=_memory.reset)


def open_heartbeat_cache() -> None:
    """Start caching in this process, if the settings allow it. No effect on SQLite, which has no notifications."""
    if settings.BYTEOR_HEARTBEAT_CACHE and connection.vendor == "postgresql":
        wake.subscribe(_memory.invalidate)
        _memory.reset()
        _memory.open = True


def close() -> None:
    """Clear the cache and stop caching."""
    _memory.open = False
    _memory.reset()


def cached_key(sha256: str) -> CachedKey | None:
    """Return the cached key, if it is valid, else None. Not inside a transaction, which may see uncommitted rows."""
    cached = _memory.keys.get(sha256)
    if cached is None or connection.in_atomic_block or not wake.delivered_within(MAX_NOTIFICATION_LAG_SECONDS):
        return None
    return cached if _memory.holds(cached) else None


def forget(sha256: str) -> None:
    """Read this key again when it is next needed."""
    _memory.keys.pop(sha256, None)


def read_key(sha256: str, read: Callable[[str], AgentKey | None]) -> AgentKey | None:
    """Return `read(sha256)`, a key with its agent, environment and project, or what it returned before, while that is
    valid."""
    cached = cached_key(sha256)
    if cached is not None:
        return cached.key
    mark, now = _memory.count, time.monotonic()
    key = read(sha256)
    if key is not None and _memory.open and not connection.in_atomic_block:
        agent = key.agent
        organization_id = agent.environment.project.organization_id
        channels = (f"agent:{agent.pk}", f"keys:{organization_id}", f"environment:{agent.environment_id}")
        _memory.remember(CachedKey(key, mark, channels, now))
    return key
