"""How an attempt begins and ends. Each step is one transaction, fenced by the lease token."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import random
import uuid
from typing import Any

import structlog
from django.db import models, transaction

from apps.audit import services as audit
from apps.core import clock, wake
from apps.core.actors import SYSTEM_ACTOR
from apps.core.db import lock_row
from apps.core.errors import NotFound, StateConflict
from apps.core.fsm import Move, advance
from apps.core.isolation import for_each
from apps.jobs.models import Job, JobAttempt, JobStatus
from apps.jobs.registry import JobRun, LeaseLost, handler_for
from apps.jobs.services.claims import LEASE, LEASES_CHORE, NO_LEASE, claim_jobs
from apps.jobs.services.queue import WAKE_JOBS
from apps.runtime.faults import fault_point
from apps.tenancy.models import Environment

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 60.0
TROUBLE_LASTS = dt.timedelta(minutes=30)
TROUBLE_PAUSE_SECONDS = 15.0


def _held(job_id: uuid.UUID, token: uuid.UUID) -> Job:
    job: Job | None = lock_row(Job.objects.filter(pk=job_id, lease_token=token))
    if job is None:
        raise LeaseLost(str(job_id))
    return job


def lock_place(job_id: uuid.UUID) -> None:
    """Lock the environment of a job whose death its app acts on, in the caller's transaction and before the job itself:
    builds end in that order, too, and two orders would lock each other out."""
    row = Job.objects.filter(pk=job_id).values_list("type", "environment_id").first()
    if row is not None and row[1] is not None and handler_for(row[0]).on_dead is not None:
        lock_row(Environment.objects.filter(pk=row[1]))


def hold_in_transaction(run: JobRun) -> None:
    """Keep the job in this attempt's hands until the caller's transaction ends. Raises LeaseLost when it is no longer."""
    _held(run.job_id, run.lease_token)


def _note_move(
    job: Job, move: Move, *, error_class: str = "", error: str = "", started: dt.datetime | None = None
) -> None:
    spent = int((clock.now() - started).total_seconds() * 1000) if started else None
    JobAttempt.objects.create(
        job=job,
        number=job.attempts,
        from_status=move.from_,
        to_status=move.to,
        error_class=error_class,
        error=error,
        duration_ms=max(0, spent) if spent is not None else None,
    )


def _read_held(job_id: uuid.UUID, mine: models.Q) -> Job:
    """A job that is in this attempt's hands (`mine`), not locked: what is written next has to check that again."""
    found: list[Job] = list(Job.objects.filter(mine, pk=job_id))
    if not found:
        raise LeaseLost(str(job_id))
    return found[0]


def _advance_held(job: Job, transition: str, mine: models.Q, **columns: Any) -> Move:
    """`advance` while the job is in this attempt's hands (`mine`). Raises LeaseLost when it is no longer."""
    try:
        return advance(job, transition, only_if=mine, **columns)
    except (NotFound, StateConflict):
        raise LeaseLost(str(job.pk)) from None


def begin_attempt(job_id: uuid.UUID, token: uuid.UUID) -> JobRun:
    """Begin the next attempt of a claimed job: count it, move a `queued` job to `running`, write its row; one transaction, before
    anything of the handler runs. Raises LeaseLost when the lease has ended, or when this delivery has begun already."""
    mine = models.Q(lease_token=token, attempt_running=False)
    job = _read_held(job_id, mine)
    now = clock.now()
    columns: dict[str, Any] = {
        "attempts": job.attempts + 1,
        "attempt_running": True,
        "started_at": now,
        "lease_expires_at": now + LEASE,
        "lease_pid": os.getpid(),
    }
    with transaction.atomic():
        if job.status == JobStatus.QUEUED.value:
            move = _advance_held(job, "begin", mine, **columns)
        elif Job.objects.filter(mine, pk=job_id).update(**columns):
            job.attempts = columns["attempts"]
            move = Move(job.status, job.status)
        else:
            raise LeaseLost(str(job_id))
        _note_move(job, move)
    return JobRun(
        job_id=job.pk,
        type=job.type,
        subject_id=job.subject_id,
        payload=job.payload,
        organization_id=job.organization_id,
        environment_id=job.environment_id,
        attempt=job.attempts,
        lease_token=token,
    )


def take_job() -> JobRun | None:
    """Claim the job that is next and begin its attempt in this process; None when none is due. A job whose lease ends in between is
    claimed anew. Workers get theirs from the broker."""
    while claims := claim_jobs(cluster=None, at_most=1).claims:
        with contextlib.suppress(LeaseLost):
            return begin_attempt(claims[0].job_id, claims[0].lease)
    return None


@transaction.atomic
def complete_in_transaction(run: JobRun, note: str = "") -> None:
    """End the job as completed inside the handler's own transaction, so that effect and end are one. Raises LeaseLost."""
    mine = models.Q(lease_token=run.lease_token)
    job = _read_held(run.job_id, mine)
    started = job.started_at
    move = _advance_held(
        job,
        "complete",
        mine,
        note=note[:500],
        progress=100,
        error_class="",
        error="",
        attempt_running=False,
        finished_at=clock.now(),
        **NO_LEASE,
    )
    _note_move(job, move, started=started)
    wake.notify(WAKE_JOBS)  # a worker is free
    fault_point("jobs.finish.before_commit")


def finish(run: JobRun, note: str = "") -> None:
    """`complete_in_transaction` in one of its own, unless the handler has done it: then `note` is kept. Raises LeaseLost."""
    try:
        complete_in_transaction(run, note)
    except LeaseLost:
        done = Job.objects.filter(pk=run.job_id, status=JobStatus.COMPLETED.value)
        if not (done.update(note=note[:500]) if note else done.exists()):
            raise


def backoff_seconds(type: str, attempts: int) -> float:
    """Exponential with full jitter: anywhere from 0 to min(cap, base · 2^(attempts − 1))."""
    spec = handler_for(type)
    ceiling = min(spec.cap_seconds, spec.base_seconds * 2 ** min(attempts - 1, 30))
    return random.uniform(0, ceiling)  # noqa: S311 - spreads retries, guards nothing


def _pause(job: Job, *, outside: bool) -> float:
    """Until the next attempt. What is outside is looked for at least every quarter of a minute: people wait for it."""
    if not outside:
        return backoff_seconds(job.type, job.attempts)
    ceiling = min(TROUBLE_PAUSE_SECONDS, handler_for(job.type).base_seconds * 2 ** min(job.attempts - 1, 30))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreads retries, guards nothing


def _excused(job: Job, now: dt.datetime) -> dict[str, Any]:
    """The columns to write so that an attempt that failed because of storage or network is not counted; none once such
    failures have lasted `TROUBLE_LASTS`."""
    since = job.trouble_since or now
    if now - since >= TROUBLE_LASTS:
        return {"trouble_since": since}
    return {"trouble_since": since, "max_attempts": job.max_attempts + 1}


@transaction.atomic
def end_attempt_failed(
    *,
    job_id: uuid.UUID,
    token: uuid.UUID,
    error_class: str,
    error: str,
    permanent: bool = False,
    outside: bool = False,
) -> Job:
    """End the attempt as failed: to be tried again after a backoff, or dead when none is left or none can succeed.

    What is `outside` (storage, network, database) uses up no attempt: one more is allowed, for half an hour from the first
    of such failures. A job that dies passes `failed` and `retrying` on the way, in this transaction; its app's `on_dead` is
    part of it. Raises LeaseLost.
    """
    lock_place(job_id)
    job = _held(job_id, token)
    now = clock.now()
    changed = _excused(job, now) if outside and not permanent else {"trouble_since": None}
    allowed: int = changed.get("max_attempts") or job.max_attempts
    started, what, why = job.started_at, error_class[:100], error[:2000]
    if job.status == JobStatus.RUNNING.value:
        move = advance(job, "fail", error_class=what, error=why, attempt_running=False)
        _note_move(job, move, error_class=what, error=why, started=started)
        move = advance(job, "retry")
        _note_move(job, move)
    dead = permanent or job.attempts >= allowed
    if not dead:
        Job.objects.filter(pk=job.pk).update(
            error_class=what,
            error=why,
            attempt_running=False,
            run_at=now + dt.timedelta(seconds=_pause(job, outside=outside)),
            **changed,
            **NO_LEASE,
        )
        wake.notify(WAKE_JOBS)
        return job
    move = advance(
        job,
        "bury",
        error_class=what,
        error=why,
        attempt_running=False,
        finished_at=now,
        **NO_LEASE,
    )
    _note_move(job, move, error_class=what, error=why, started=started)
    wake.notify(WAKE_JOBS)  # a worker is free
    on_dead = handler_for(job.type).on_dead
    if on_dead is not None:
        on_dead(job)
    audit.record(
        organization_id=job.organization_id,
        action="job.dead_letter",
        actor=SYSTEM_ACTOR,
        target=f"job:{job.pk}",
        scope={"organization_id": job.organization_id, "environment_id": job.environment_id},
        details={"type": job.type, "subject_id": job.subject_id, "attempts": job.attempts, "error_class": what},
    )
    return job


def release_expired() -> int:
    """End every lease that ran out; how many. An attempt that began has failed; a claim that never began is given back
    unchanged. One that can't be ended holds up no other."""
    ids = list(_expired().order_by("lease_expires_at").values_list("pk", flat=True))
    return for_each(LEASES_CHORE, ids, _release, seconds=SWEEP_SECONDS)


def _expired() -> models.QuerySet[Job]:
    return Job.objects.filter(lease_slot__isnull=False, lease_expires_at__lte=clock.now())


def _release(job_id: uuid.UUID) -> bool:
    with transaction.atomic():
        lock_place(job_id)
        job: Job | None = lock_row(_expired().filter(pk=job_id))
        if job is None or job.lease_token is None:
            return False
        if job.attempt_running:
            end_attempt_failed(
                job_id=job_id,
                token=job.lease_token,
                error_class="LeaseExpired",
                error="The worker that ran it stopped renewing its lease.",
            )
        else:
            Job.objects.filter(pk=job_id).update(**NO_LEASE)
            wake.notify(WAKE_JOBS)
    fault_point("jobs.lease.after_release")
    log.warning("job lease expired", job_id=str(job_id), begun=job.attempt_running)
    return True
