"""Waiting polls: an agent hears of a change at once, and a process never runs out of threads for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings

from apps.agents.authentication import still_works
from apps.agents.models import Agent, AgentKey
from apps.agents.services.directives import NumberedDirective, channel_of, number_directive
from apps.core import wake
from apps.core.errors import NotFound, Unauthenticated
from apps.signing import services as signing


class WaitSlots:
    """How many requests of this process may wait at once: half of its threads."""

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0

    @contextmanager
    def take(self) -> Iterator[bool]:
        """True inside the block when there was room, held until its end."""
        limit = max(1, int(settings.BYTEOR_WEB_THREADS) // 2)
        with self._lock:
            granted = self._taken < limit
            self._taken += granted
        try:
            yield granted
        finally:
            with self._lock:
                self._taken -= granted


slots = WaitSlots()


def newer_keys(agent: Agent, known: int) -> bool:
    """Is the organization's key set above version `known`? Never for 0: that is somebody who did not say what they know."""
    return known > 0 and signing.key_set_version(agent.environment.project.organization_id) > known


def await_directive(key: AgentKey, after: int, seconds: float, *, key_set_version: int = 0) -> NumberedDirective | None:
    """The key's agent's directive as soon as its number is above `after`, or the key set above `key_set_version`; None when
    neither is within `seconds` or the process is stopping. Raises Unauthenticated the moment the key ends. Holds no transaction."""
    deadline = time.monotonic() + seconds
    watch = _Watch(key, after, key_set_version)
    while not watch.settled():
        left = deadline - time.monotonic()
        if left <= 0 or wake.stopping():
            return None
        wake.wait(channel_of(key.agent_id), left, ready=watch.settled)
    return watch.result()


class _Watch:
    """Looks until there is news or the key is gone; looks no more after that."""

    def __init__(self, key: AgentKey, after: int, key_set_version: int) -> None:
        self._key = key
        self._after = after
        self._key_set_version = key_set_version
        self._found: NumberedDirective | None = None
        self._gone = False

    def settled(self) -> bool:
        if self._gone or self._found is not None:
            return True
        try:
            latest = number_directive(self._key.agent)
        except NotFound:
            self._gone = True
            return True
        if not still_works(self._key):
            self._gone = True
        elif latest.seq > self._after or newer_keys(self._key.agent, self._key_set_version):
            self._found = latest
        return self._gone or self._found is not None

    def result(self) -> NumberedDirective | None:
        if self._gone:
            raise Unauthenticated("This key has ended.")
        return self._found
