"""Health of processes: heartbeats of worker clusters, and the clocks of all live processes."""

from __future__ import annotations

import datetime as dt
import os
import socket
import statistics
import time
import uuid

from django.db import connection

from apps.core import clock
from apps.core.ids import new_id
from apps.core.readiness import Degraded, NotReady
from apps.jobs.models import ProcessClock, WorkerBeat

CLUSTER_ENV = "BYTEOR_CLUSTER_ID"
BEAT_EVERY_SECONDS = 5.0
STALE_SECONDS = 20.0
APART_MS = 5000
LIVE = dt.timedelta(seconds=30)

_beat_at = float("-inf")


def own_cluster() -> uuid.UUID | None:
    """The cluster that this process belongs to; None outside of any."""
    text = os.environ.get(CLUSTER_ENV)
    return uuid.UUID(text) if text else None


def beat() -> None:
    """Write the heartbeat of the cluster that this process belongs to: a task has come through broker, queue and worker."""
    global _beat_at
    _beat_at = time.monotonic()
    cluster = own_cluster()
    if cluster is None:
        return
    now = {"beat_at": clock.now(), "host": socket.gethostname()[:255], "pid": os.getpid()}
    if not WorkerBeat.objects.filter(pk=cluster).update(**now):
        WorkerBeat.objects.get_or_create(cluster_id=cluster, defaults=now)


def beat_when_due() -> None:
    """`beat`, unless this process wrote one in the last five seconds."""
    if time.monotonic() - _beat_at >= BEAT_EVERY_SECONDS:
        beat()


def last_beat(cluster_id: uuid.UUID) -> dt.datetime | None:
    """When this cluster last wrote a heartbeat."""
    return WorkerBeat.objects.filter(pk=cluster_id).values_list("beat_at", flat=True).first()


def delete_ended(*, before: dt.datetime) -> int:
    """Delete the rows of clusters and processes that ended; how many."""
    beats, _ = WorkerBeat.objects.filter(beat_at__lt=before).delete()
    clocks, _ = ProcessClock.objects.filter(seen_at__lt=before).delete()
    return int(beats + clocks)


def check_worker() -> None:
    """Readiness: some cluster wrote a heartbeat in the last 20 s. Raises NotReady."""
    newest = WorkerBeat.objects.order_by("-beat_at").values_list("beat_at", flat=True).first()
    if newest is None:
        raise NotReady("no worker has sent a heartbeat yet")
    age = (clock.now() - newest).total_seconds()
    if age > STALE_SECONDS:
        raise NotReady(f"the last heartbeat of a worker is {int(age)} s old")


_own = new_id()
_kind = "web"
_pid = os.getpid()
_apart_ms: int | None = None


def set_process_kind(kind: str) -> None:
    """Name the kind of this process in the clock rows that it writes."""
    global _kind
    _kind = kind


def apart_by_process() -> dict[tuple[str, ...], float]:
    """How far this process's clock was from the middle of all when it last compared them, as a gauge; nothing before that."""
    return {} if _apart_ms is None else {(): _apart_ms / 1000}


def judge_clock(own_ms: int, others_ms: list[int]) -> str | None:
    """What is wrong with a clock that is `own_ms` ahead of the database's where those of the other live processes are
    `others_ms`: None when nothing. Raises NotReady when it differs by 5 s from a majority of all, itself included; where half of
    them differ, the database's clock decides, if it agrees with the others.
    """
    differ = [ms for ms in others_ms if abs(ms - own_ms) > APART_MS]
    count = len(others_ms) + 1
    apart = f"this clock is {own_ms / 1000:+.1f} s from the database's"
    tie = 2 * len(differ) == count and abs(own_ms) > APART_MS and any(abs(ms) <= APART_MS for ms in differ)
    if 2 * len(differ) > count or tie:
        raise NotReady(f"{apart} and differs from those of {len(differ)} of {len(others_ms)} other live processes")
    if abs(own_ms) > APART_MS:
        return f"{apart}, as are those of the others" if others_ms else apart
    if differ:
        return f"the clocks of {len(differ)} other live processes differ from this one's"
    return None


def compare_clocks() -> None:
    """Write this process's clock and compare it with those of the others. Raises NotReady, or Degraded.

    Nothing to compare on SQLite: one machine, one clock.
    """
    global _apart_ms, _own, _pid
    if connection.vendor != "postgresql":
        return
    if _pid != os.getpid():
        _own, _pid = new_id(), os.getpid()
    began = time.monotonic()
    before = clock.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        database: dt.datetime = cursor.fetchone()[0]
    middle = before + dt.timedelta(seconds=(time.monotonic() - began) / 2)
    own = int((middle - database).total_seconds() * 1000)
    row = {"kind": _kind, "host": socket.gethostname()[:255], "pid": _pid, "ahead_ms": own, "seen_at": database}
    ProcessClock.objects.update_or_create(process_id=_own, defaults=row)
    live = ProcessClock.objects.filter(seen_at__gt=database - LIVE).exclude(pk=_own)
    others = list(live.values_list("ahead_ms", flat=True))
    _apart_ms = own - int(statistics.median([own, *others]))
    problem = judge_clock(own, others)
    if problem is not None:
        raise Degraded(problem)
