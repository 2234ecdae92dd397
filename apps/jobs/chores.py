"""What the system does for itself, one process at a time."""

from __future__ import annotations

import datetime as dt
import threading

import structlog
from django.db import DatabaseError, connection

from apps.core import clock, wake
from apps.jobs import liveness
from apps.jobs.models import Chore
from apps.jobs.registry import ChoreSpec, chores, register_chore
from apps.jobs.services import release_expired
from apps.jobs.services.moves import LEASE
from apps.jobs.services.queue import WAKE_CHORES

log = structlog.get_logger(__name__)


def register_own() -> None:
    """The chores of this room."""
    register_chore("job_leases", every_seconds=LEASE.total_seconds() / 6, run=lambda now: release_expired())
    register_chore(
        "worker_beats", every_seconds=3600, run=lambda now: liveness.forget(before=now - dt.timedelta(days=1))
    )


def _take(spec: ChoreSpec, now: dt.datetime) -> bool:
    """Whether this process runs it now: by moving `next_run_at`, which only one can."""
    row, _ = Chore.objects.get_or_create(name=spec.name, defaults={"next_run_at": now})
    if row.next_run_at > now:
        return False
    rows = Chore.objects.filter(pk=spec.name, next_run_at=row.next_run_at)
    return rows.update(next_run_at=now + spec.every, last_started_at=now) == 1


def run_due_chores() -> int:
    """Run every chore that is due and nobody else took; how many ran. One that fails is recorded and does not stop others."""
    ran = 0
    for spec in chores():
        now = clock.now()
        if not _take(spec, now):
            continue
        ran += 1
        result, problem = None, ""
        try:
            result = spec.run(now)
        except Exception as error:  # recorded; the next run tries again
            problem = type(error).__name__
            log.error("chore failed", chore=spec.name, exc_info=error)
        Chore.objects.filter(pk=spec.name).update(last_finished_at=clock.now(), last_result=result, last_error=problem)
    return ran


def run_chores_until(stop: threading.Event) -> None:
    """Run chores as they fall due until `stop` is set; survives a database that goes away."""
    while not stop.is_set():
        try:
            run_due_chores()
            soonest = Chore.objects.order_by("next_run_at").values_list("next_run_at", flat=True).first()
            pause = 1.0 if soonest is None else (soonest - clock.now()).total_seconds()
            wake.wait(WAKE_CHORES, min(1.0, max(0.05, pause)), ready=None)
        except DatabaseError as error:
            log.warning("chores wait for the database", error=type(error).__name__)
            connection.close()
            stop.wait(1.0)
    connection.close()
