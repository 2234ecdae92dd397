"""Batched writes of the time at which agents were last seen."""

from __future__ import annotations

import atexit
import datetime as dt
import json
import multiprocessing.util
import os
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from django.db import DatabaseError, connection, transaction

from apps.agents.models import AgentKey
from apps.agents.services.heartbeats import Heartbeat
from apps.core import clock, wake
from apps.core.db import database_away, reason

log = structlog.get_logger(__name__)

FLUSH_EVERY = 1.0
BATCH = 1000
TRIES = 30
"""Number of flushes that try to write a row that is locked; a deleted row is dropped after them."""


@dataclass(slots=True)
class _Seen:
    """An agent's last heartbeat and the key it came with, not written yet."""

    at: dt.datetime
    heartbeat: Heartbeat
    key_id: uuid.UUID
    tries: int = 0


class _Flusher:
    """The pending rows and the thread that writes them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.lock = threading.Lock()
        self.writing = threading.Lock()
        self.pending: dict[uuid.UUID, _Seen] = {}
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def note(self, agent_id: uuid.UUID, seen: _Seen) -> None:
        with self.lock:
            self.pending[agent_id] = seen
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="byteor-seen", daemon=True)
                self.thread.start()

    def _run(self) -> None:
        ended = self.ended
        # during shutdown the next interval is not awaited
        while not ended.wait(0.05 if wake.stopping() else FLUSH_EVERY):
            self._flush_quietly()
        self._flush_quietly()
        connection.close()

    def _flush_quietly(self) -> None:
        try:
            self.flush()
        except DatabaseError as error:
            log.warning("heartbeat writes delayed: database unavailable", error=type(error).__name__)
            connection.close()
        except Exception as error:  # the thread must survive any error
            log.error("heartbeat writes failed", exc_info=error)
            connection.close()

    def end(self) -> None:
        """Write pending rows and end the thread. The next heartbeat starts another."""
        with self.lock:
            thread, self.thread = self.thread, None
            ended, self.ended = self.ended, threading.Event()
        if thread is not None:
            ended.set()
            thread.join(timeout=10)
        # of concurrent calls the first one writes; the process must not exit before
        self._flush_quietly()

    def flush(self) -> int:
        """Write pending rows now. Returns their number. Rows that could not be written stay pending."""
        with self.writing:
            with self.lock:
                batch, self.pending = self.pending, {}
            written: set[uuid.UUID] = set()
            try:
                items = sorted(batch.items())
                for start in range(0, len(items), BATCH):
                    written |= _write_isolated(items[start : start + BATCH])
            finally:
                self._requeue({pk: seen for pk, seen in batch.items() if pk not in written})
            return len(written)

    def _requeue(self, rest: dict[uuid.UUID, _Seen]) -> None:
        with self.lock:
            for agent_id, seen in rest.items():
                seen.tries += 1
                if seen.tries < TRIES and agent_id not in self.pending:
                    self.pending[agent_id] = seen


_flusher = _Flusher()
os.register_at_fork(after_in_child=_flusher.reset)


def queue_last_seen(key: AgentKey, heartbeat: Heartbeat) -> None:
    """Queue that the agent of `key` was seen now, with what `heartbeat` reports for display, and that the key was used, to
    be written within `FLUSH_EVERY` seconds.

    A process that is killed loses at most that.
    """
    now = clock.now()
    key.last_used_at = now
    _flusher.note(key.agent_id, _Seen(now, heartbeat, key.pk))


def flush_last_seen() -> int:
    """Write pending rows. Returns the number of agents."""
    return _flusher.flush()


def end() -> None:
    """Write pending rows and stop the thread until there are more."""
    _flusher.end()


atexit.register(end)
# a server's worker process ends without calling atexit functions
multiprocessing.util.Finalize(None, end, exitpriority=100)

_FREE = (
    "SELECT id FROM agents_agent WHERE id = ANY(%s::uuid[]) AND revoked_at IS NULL "
    "ORDER BY id FOR NO KEY UPDATE SKIP LOCKED"
)
_SEEN = """
UPDATE agents_agent AS a SET last_seen_at = v.seen, reported_status = v.status, version = v.version,
       key_set_version = v.keys, metrics = v.metrics
FROM unnest(%s::uuid[], %s::timestamptz[], %s::text[], %s::text[], %s::int[], %s::jsonb[])
     AS v (id, seen, status, version, keys, metrics)
WHERE a.id = v.id AND (a.last_seen_at IS NULL OR a.last_seen_at < v.seen)
"""
_USED = """
UPDATE agents_agentkey AS k SET last_used_at = free.seen
FROM (
    SELECT used.id, v.seen FROM unnest(%s::uuid[], %s::timestamptz[]) AS v (id, seen)
    JOIN agents_agentkey AS used ON used.id = v.id
    WHERE used.last_used_at IS NULL OR used.last_used_at < v.seen - interval '50 seconds'
    FOR NO KEY UPDATE OF used SKIP LOCKED
) AS free
WHERE k.id = free.id
"""


def _write_isolated(items: Sequence[tuple[uuid.UUID, _Seen]]) -> set[uuid.UUID]:
    """As `_write`, but if one row makes the database refuse the batch, write the others."""
    try:
        return _write(items)
    except DatabaseError as error:
        if database_away(error):
            raise
        if len(items) == 1:
            log.error("heartbeat write of one agent failed", agent_id=str(items[0][0]), reason=reason(error))
            return set()
    half = len(items) // 2
    return _write_isolated(items[:half]) | _write_isolated(items[half:])


def _write(items: Sequence[tuple[uuid.UUID, _Seen]]) -> set[uuid.UUID]:
    """Write the rows that are not locked. It waits for no lock, so it can't deadlock with another flush or the purge."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_FREE, [[pk for pk, _ in items]])
        free = {row[0] for row in cursor.fetchall()}
        mine = [(pk, seen) for pk, seen in items if pk in free]
        if mine:
            columns: list[list[object]] = [
                [pk for pk, _ in mine],
                [seen.at for _, seen in mine],
                [seen.heartbeat.status for _, seen in mine],
                [seen.heartbeat.version for _, seen in mine],
                [seen.heartbeat.key_set_version for _, seen in mine],
                [json.dumps(seen.heartbeat.metrics) for _, seen in mine],
            ]
            cursor.execute(_SEEN, columns)
            cursor.execute(_USED, [[seen.key_id for _, seen in mine], [seen.at for _, seen in mine]])
    return free
