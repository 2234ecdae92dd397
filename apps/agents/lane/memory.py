"""What this process remembers of agents, and for how long it may."""

from __future__ import annotations

import datetime as dt
import os
import time
import uuid
from dataclasses import dataclass, field

from django.db import connection

from apps.agents.registry import Desired, Running
from apps.core import wake
from apps.runtime import trust

FRESH_SECONDS = 0.9
"""How long ago a change may have been made that this process has not heard of."""
KEEP_SECONDS = 600.0
"""After this an agent is read anew, whatever was heard."""
SIGNED_SECONDS = 60.0
"""A signed directive is handed out again for so long; it is valid for ten minutes."""
MOST_STANDINGS = 50_000
MOST_CHANNELS = 200_000

Mark = int


@dataclass(slots=True)
class Standing:
    """One runtime key with its agent, as read at `mark`, and what the agent was last told.

    `running` and `health_detail` are what the database holds of it. `signed` and the answers' `bodies` (by path prefix) are
    made anew when they are old. `said` is the last body that was found to say nothing new, with what is noted of it.
    """

    mark: Mark
    key_id: uuid.UUID
    credential_id: str
    actor: str
    agent_id: uuid.UUID
    organization_id: uuid.UUID
    environment_id: uuid.UUID
    expires_at: dt.datetime | None
    key_noted_at: dt.datetime | None
    running: Running | None
    health_detail: str
    desired: Desired
    seq: int
    key_set_version: int
    signer: trust.Signer
    channels: tuple[str, str, str]
    read_at: float = field(default_factory=time.monotonic)
    seen_at: float = field(default_factory=time.monotonic)
    signed_at: float = float("-inf")
    bodies: dict[str, bytes] = field(default_factory=dict)
    said: tuple[bytes, Claims] | None = None


@dataclass(frozen=True, slots=True)
class Claims:
    """What a host says that decides nothing: kept to be shown."""

    status: str
    version: str
    key_set_version: int
    metrics: str  # JSON


class _Memory:
    """Standings by the key's SHA-256, and when (by the count of what was heard) each channel was last heard of."""

    def __init__(self) -> None:
        self.open = False
        self.count: Mark = 0
        self.reset()

    def reset(self) -> None:
        """Forget all, what is being read at this moment too."""
        self.floor = self.count = self.count + 1
        self.standings: dict[str, Standing] = {}
        self.heard: dict[str, Mark] = {}
        self.told: dict[uuid.UUID, int] = {}

    def hear(self, channel: str | None) -> None:
        """In the listener's thread: what was read before this about `channel` (None: about anything) no longer holds."""
        count = self.count + 1
        if channel is None or len(self.heard) >= MOST_CHANNELS:
            self.reset()
            return
        if channel.startswith(("agent:", "keys:", "environment:")):
            self.heard[channel] = count
            self.count = count

    def holds(self, standing: Standing) -> bool:
        heard, read = self.heard, standing.mark
        agent, keys, environment = standing.channels
        return (
            self.floor <= read
            and heard.get(agent, 0) <= read
            and heard.get(keys, 0) <= read
            and heard.get(environment, 0) <= read
            and self.told.get(standing.agent_id, 0) <= standing.seq
        )


_memory = _Memory()
os.register_at_fork(after_in_child=_memory.reset)


def open_lane() -> None:
    """Let this process remember. Does nothing on SQLite, which can't say what was heard."""
    if connection.vendor == "postgresql":
        wake.subscribe(_memory.hear)
        _memory.reset()
        _memory.open = True


def close_lane() -> None:
    """Forget everything and remember nothing more."""
    _memory.open = False
    _memory.reset()


def is_open() -> bool:
    """May this process remember? Not inside a transaction, which may see what nobody else does."""
    return _memory.open and not connection.in_atomic_block


def mark() -> Mark:
    """Where the present reads begin: to be taken before the first of them, and given to `remember` with what they read."""
    return _memory.count


def remember(sha256: str, standing: Standing) -> None:
    """Keep what was read since its mark."""
    standings = _memory.standings
    standings.pop(sha256, None)
    while len(standings) >= MOST_STANDINGS:
        standings.pop(next(iter(standings)), None)
    standings[sha256] = standing


def note_told(agent_id: uuid.UUID, seq: int) -> None:
    """This process answers `agent_id` with the directive `seq`: what it remembers with an older one no longer holds."""
    if _memory.open:
        if len(_memory.told) >= MOST_STANDINGS:
            _memory.reset()
        _memory.told[agent_id] = seq


def standing_of(sha256: str) -> Standing | None:
    """What is remembered of the key, if nothing was heard that changes it and everything was heard; else None."""
    standing = _memory.standings.get(sha256)
    if standing is None or not wake.heard_within(FRESH_SECONDS):
        return None
    if not _memory.holds(standing) or time.monotonic() - standing.read_at > KEEP_SECONDS:
        _memory.standings.pop(sha256, None)
        return None
    return standing


def channels_of(agent_id: uuid.UUID, organization_id: uuid.UUID, environment_id: uuid.UUID) -> tuple[str, str, str]:
    """The channels that tell of changes to what a standing holds."""
    return f"agent:{agent_id}", f"keys:{organization_id}", f"environment:{environment_id}"
