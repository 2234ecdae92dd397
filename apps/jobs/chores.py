"""Chores, which the system does for itself, each in one process at a time, and the process that runs them.

The process that writes the lease of a chore runs it; the lease is renewed while it runs and fences its end. A killed process leaves a
lease that runs out, and the chore is due again at once. Chores run in threads, so that one that takes long delays no other; one that
is stuck past its timeout can only be ended with its process, which ends itself and is started anew by the watchdog.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import structlog
from django.db import Error, close_old_connections, connection
from django.db.models import Q

from apps.access.services.accounts import delete_ended_tokens
from apps.access.services.mail import send_due
from apps.access.services.members import delete_expired_invitations
from apps.access.services.resets import delete_ended_resets
from apps.access.services.sign_in import forget_expired
from apps.core import clock, isolation, wake
from apps.core.db import reason
from apps.core.ids import new_id
from apps.core.readiness import Degraded, NotReady
from apps.jobs import process_health, schedules
from apps.jobs.models import Chore
from apps.jobs.registry import ChoreSpec, chores, register_chore
from apps.jobs.services import release_expired
from apps.jobs.services.claims import LEASE as JOB_LEASE
from apps.jobs.services.claims import LEASES_CHORE
from apps.jobs.services.queue import WAKE_CHORES
from apps.runtime.faults import fault_point

log = structlog.get_logger(__name__)

LEASE = dt.timedelta(seconds=15)
RENEW_EVERY_SECONDS = 3.0
AT_ONCE = 3
OVERDUE_SECONDS = 60.0
KEPT_AFTER_END = dt.timedelta(days=30)
STUCK_EXIT, FENCED_EXIT = 71, 72


def register_own() -> None:
    """Register the chores of this app."""
    register_chore(LEASES_CHORE, every_seconds=JOB_LEASE.total_seconds() / 6, run=lambda now: release_expired())
    register_chore("mail", every_seconds=5, run=send_due)
    register_chore("expired_sessions", every_seconds=3600, run=_forget_ended)
    register_chore("worker_beats", every_seconds=3600, run=_delete_ended_processes)
    register_chore(schedules.CHORE, every_seconds=600, run=lambda now: schedules.complete_schedules())


def _forget_ended(now: dt.datetime) -> int:
    """Delete sessions, addresses, and the links, invitations and tokens that ended 30 days ago; how many there were."""
    before = now - KEPT_AFTER_END
    return (
        forget_expired(now)
        + delete_ended_resets(ended_before=before)
        + delete_ended_tokens(ended_before=before)
        + delete_expired_invitations(expired_before=before)
    )


def _delete_ended_processes(now: dt.datetime) -> int:
    return process_health.delete_ended(before=now - dt.timedelta(days=1))


def failed_items() -> dict[tuple[str, ...], float]:
    """{(chore,): how many items failed in its last run}, for `/metrics`."""
    return {(name,): float(count) for name, count in Chore.objects.values_list("name", "last_failed")}


def check_chores() -> None:
    """Readiness: no chore that was due a minute ago still waits for a process to run it."""
    names = [spec.name for spec in chores()]
    late = Chore.objects.filter(
        Q(lease_token=None) | Q(lease_expires_at__lte=clock.now()),
        name__in=names,
        next_run_at__lt=clock.now() - dt.timedelta(seconds=OVERDUE_SECONDS),
    )
    overdue = sorted(late.values_list("name", flat=True))
    if overdue:
        raise NotReady(f"no process runs {', '.join(overdue)}")
    failing = Chore.objects.filter(name__in=names, last_failed__gt=0).order_by("name")
    details = [f"{name} ({count})" for name, count in failing.values_list("name", "last_failed")]
    if details:
        raise Degraded(f"items fail in {', '.join(details)}: the log names them")


def _due(row: Chore, now: dt.datetime) -> bool:
    if row.lease_token is None:
        return row.next_run_at <= now
    # left by a process that was killed: due again, whenever it is scheduled next
    return row.lease_expires_at is None or row.lease_expires_at <= now


def _take(spec: ChoreSpec, row: Chore, now: dt.datetime) -> uuid.UUID | None:
    """The lease's token when the run is ours: by replacing the lease that `row` shows, which only one can."""
    token = new_id()
    shown = {"lease_token": row.lease_token, "lease_expires_at": row.lease_expires_at, "next_run_at": row.next_run_at}
    rows = Chore.objects.filter(pk=spec.name, **shown)
    taken = rows.update(
        lease_token=token, lease_expires_at=now + LEASE, last_started_at=now, next_run_at=now + spec.every
    )
    return token if taken else None


def _take_due(specs: list[ChoreSpec]) -> list[tuple[ChoreSpec, uuid.UUID]]:
    """Lease those of `specs` that are due and that no other process has leased."""
    rows = {row.name: row for row in Chore.objects.filter(pk__in=[spec.name for spec in specs])}
    taken = []
    for spec in specs:
        now = clock.now()
        row = rows.get(spec.name)
        if row is None:
            row, _ = Chore.objects.get_or_create(name=spec.name, defaults={"next_run_at": now})
        token = _take(spec, row, now) if _due(row, now) else None
        if token is not None:
            taken.append((spec, token))
    return taken


def _end(name: str, token: uuid.UUID, *, result: int | None, problem: str, failed: int = 0) -> None:
    Chore.objects.filter(pk=name, lease_token=token).update(
        lease_token=None,
        lease_expires_at=None,
        last_finished_at=clock.now(),
        last_result=result,
        last_error=problem,
        last_failed=failed,
    )


def _run(spec: ChoreSpec, token: uuid.UUID) -> None:
    result, problem = None, ""
    fault_point("jobs.chore.taken")
    with isolation.counting() as tally:
        try:
            result = spec.run(clock.now())
        except Exception as error:  # recorded; the next run tries again
            problem = type(error).__name__
            log.error("chore failed", chore=spec.name, exc_info=error)
    fault_point("jobs.chore.ran")
    _end(spec.name, token, result=result, problem=problem, failed=tally.failed)


@dataclass(slots=True)
class _Running:
    spec: ChoreSpec
    token: uuid.UUID
    future: Future[None]
    leased_until: float
    stuck_at: float


class ChoreRunner:
    """Runs chores as they fall due until `stop`; survives a database that goes away; ends the process when one is stuck."""

    def __init__(self, stop: threading.Event, tick: Callable[[], None]) -> None:
        self._stop, self._tick = stop, tick
        self._pool = ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="chore")
        self._running: dict[str, _Running] = {}

    def run(self) -> None:
        """`tick` is called at least every few seconds while all is well."""
        renew_at = 0.0
        while not self._stop.is_set():
            self._tick()
            self._end_if_stuck()
            try:
                seen = wake.ticket(WAKE_CHORES)
                if time.monotonic() >= renew_at:
                    renew_at = time.monotonic() + RENEW_EVERY_SECONDS
                    self._renew()
                self._start_due()
                known = Chore.objects.filter(pk__in=[spec.name for spec in chores()])
                soonest = known.order_by("next_run_at").values_list("next_run_at", flat=True).first()
                pause = 1.0 if soonest is None else (soonest - clock.now()).total_seconds()
                wake.wait(WAKE_CHORES, min(1.0, max(0.05, pause)), since=seen)
            except Error as error:
                log.warning("chores wait for the database", reason=reason(error))
                connection.close()
                self._stop.wait(1.0)

    def _start_due(self) -> None:
        self._running = {name: r for name, r in self._running.items() if not r.future.done()}
        if len(self._running) >= AT_ONCE:
            return
        for spec, token in _take_due([spec for spec in chores() if spec.name not in self._running]):
            now = time.monotonic()
            self._running[spec.name] = _Running(
                spec,
                token,
                self._pool.submit(self._work, spec, token),
                now + LEASE.total_seconds(),
                now + spec.timeout.total_seconds(),
            )

    def _work(self, spec: ChoreSpec, token: uuid.UUID) -> None:
        close_old_connections()
        try:
            _run(spec, token)
        except Error as error:
            log.warning("how a chore went can't be recorded", chore=spec.name, error=type(error).__name__)
            connection.close()

    def _renew(self) -> None:
        for name, running in self._running.items():
            if running.future.done():
                continue
            asked = time.monotonic()
            rows = Chore.objects.filter(pk=name, lease_token=running.token)
            if rows.update(lease_expires_at=clock.now() + LEASE):
                running.leased_until = asked + LEASE.total_seconds()
            elif not running.future.done():
                self._leave(FENCED_EXIT, "a chore that runs here is another's by now", running)

    def _end_if_stuck(self) -> None:
        for running in self._running.values():
            if running.future.done():
                continue
            if time.monotonic() >= running.stuck_at:
                try:
                    _end(
                        running.spec.name, running.token, result=None, problem="Stuck: it took too long and was ended."
                    )
                except Error:
                    log.warning("the lease of a stuck chore runs out by itself", chore=running.spec.name)
                self._leave(STUCK_EXIT, "a chore is stuck; its process ends", running)
            if time.monotonic() >= running.leased_until:
                self._leave(FENCED_EXIT, "the lease of a chore that runs here could not be renewed", running)

    def _leave(self, code: int, why: str, running: _Running) -> None:
        log.error(why, chore=running.spec.name)
        sys.stderr.flush()
        os._exit(code)
