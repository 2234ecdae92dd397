"""Writing in batches that agents were seen."""

from __future__ import annotations

import atexit
import datetime as dt
import multiprocessing.util
import os
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from django.db import DatabaseError, connection, transaction

from apps.agents.lane.memory import Claims
from apps.core import wake

log = structlog.get_logger(__name__)

FLUSH_EVERY = 1.0
BATCH = 1000
TRIES = 30
"""A row that somebody else holds is tried again with the next flush, this often; one that is gone is given up after it."""


@dataclass(slots=True)
class _Seen:
    """The last heartbeat of an agent that is still to be written. `key_id` when its key's use is to be noted too."""

    at: dt.datetime
    claims: Claims
    key_id: uuid.UUID | None
    tries: int = 0


class _Flusher:
    """What waits to be written, and the thread that writes it."""

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
            former = self.pending.get(agent_id)
            if former is not None and seen.key_id is None:
                seen.key_id = former.key_id
            self.pending[agent_id] = seen
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="byteor-seen", daemon=True)
                self.thread.start()

    def _run(self) -> None:
        ended = self.ended
        # once the process is told to stop, nothing waits for the next turn
        while not ended.wait(0.05 if wake.stopping() else FLUSH_EVERY):
            self._flush_quietly()
        self._flush_quietly()
        connection.close()

    def _flush_quietly(self) -> None:
        try:
            self.flush()
        except DatabaseError as error:
            log.warning("what agents say waits for the database", error=type(error).__name__)
            connection.close()
        except Exception as error:  # the thread must live on
            log.error("what agents say could not be written", exc_info=error)
            connection.close()

    def end(self) -> None:
        """Write what is pending and end the thread; the next heartbeat starts another."""
        with self.lock:
            thread, self.thread = self.thread, None
            ended, self.ended = self.ended, threading.Event()
        if thread is not None:
            ended.set()
            thread.join(timeout=10)
        # two may end it at once, and the process must not go before either has written: whoever comes here first writes
        self._flush_quietly()

    def flush(self) -> int:
        """Write what is pending now; how many rows. What could not be written stays pending."""
        with self.writing:
            with self.lock:
                taken, self.pending = self.pending, {}
            written: set[uuid.UUID] = set()
            try:
                items = sorted(taken.items())
                for start in range(0, len(items), BATCH):
                    written |= _write(items[start : start + BATCH])
            finally:
                self._put_back({pk: seen for pk, seen in taken.items() if pk not in written})
            return len(written)

    def _put_back(self, rest: dict[uuid.UUID, _Seen]) -> None:
        with self.lock:
            for agent_id, seen in rest.items():
                seen.tries += 1
                if seen.tries < TRIES and agent_id not in self.pending:
                    self.pending[agent_id] = seen


_flusher = _Flusher()
os.register_at_fork(after_in_child=_flusher.reset)


def note_seen(agent_id: uuid.UUID, at: dt.datetime, claims: Claims, *, key_id: uuid.UUID | None = None) -> None:
    """Let it be written within `FLUSH_EVERY` seconds that the agent was seen; with `key_id`, that its key was used too.
    A process that is killed loses at most that."""
    _flusher.note(agent_id, _Seen(at, claims, key_id))


def flush_now() -> int:
    """Write what waits; how many agents."""
    return _flusher.flush()


def end() -> None:
    """Write what waits and stop writing until there is more."""
    _flusher.end()


atexit.register(end)
# a server's worker is a child that ends without what atexit does
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
UPDATE agents_agentkey AS k SET last_used_at = v.seen FROM unnest(%s::uuid[], %s::timestamptz[]) AS v (id, seen)
WHERE k.id = v.id AND (k.last_used_at IS NULL OR k.last_used_at < v.seen - interval '50 seconds')
"""


def _write(items: Sequence[tuple[uuid.UUID, _Seen]]) -> set[uuid.UUID]:
    """Write those whose row nobody else holds (it waits for no lock, so no two flushes can wait for each other)."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_FREE, [[pk for pk, _ in items]])
        free = {row[0] for row in cursor.fetchall()}
        mine = [(pk, seen) for pk, seen in items if pk in free]
        if mine:
            columns: list[list[object]] = [
                [pk for pk, _ in mine],
                [seen.at for _, seen in mine],
                [seen.claims.status for _, seen in mine],
                [seen.claims.version for _, seen in mine],
                [seen.claims.key_set_version for _, seen in mine],
                [seen.claims.metrics for _, seen in mine],
            ]
            cursor.execute(_SEEN, columns)
        used = [(seen.key_id, seen.at) for _, seen in mine if seen.key_id is not None]
        if used:
            cursor.execute(_USED, [[key for key, _ in used], [at for _, at in used]])
    return free
