"""How an attempt ends. Each way is one transaction, fenced by the lease token."""

from __future__ import annotations

import datetime as dt
import random
import uuid

from django.db import transaction

from apps.audit import services as audit
from apps.core import clock, wake
from apps.core.actors import SYSTEM_ACTOR
from apps.core.db import lock_row
from apps.core.fsm import Move, advance
from apps.jobs.models import Job, JobAttempt, JobStatus
from apps.jobs.registry import JobRun, LeaseLost, handler_for
from apps.jobs.services import table
from apps.jobs.services.queue import WAKE_JOBS
from apps.runtime.faults import fault_point
from apps.tenancy.models import Environment


def _held(job_id: uuid.UUID, token: uuid.UUID) -> Job:
    job: Job | None = lock_row(Job.objects.filter(pk=job_id, lease_token=token))
    if job is None:
        raise LeaseLost(str(job_id))
    return job


def lock_place(job_id: uuid.UUID) -> None:
    """Lock the environment of a job whose death its room acts on, in the caller's transaction and before the job itself:
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


def complete_in_transaction(run: JobRun, note: str = "") -> None:
    """End the job as completed inside the handler's own transaction, so that effect and end are one. Raises LeaseLost."""
    if not table.complete(run, note):
        raise LeaseLost(str(run.job_id))
    fault_point("jobs.finish.before_commit")


def already_finished(run: JobRun, note: str = "") -> bool:
    """Whether the handler has completed the job itself; `note` is then kept."""
    done = Job.objects.filter(pk=run.job_id, status=JobStatus.COMPLETED.value)
    return bool(done.update(note=note[:500])) if note else done.exists()


def finish(run: JobRun, note: str = "") -> None:
    """`complete_in_transaction` in one of its own, unless the handler has done it. Raises LeaseLost."""
    if not table.complete(run, note) and not already_finished(run, note):
        raise LeaseLost(str(run.job_id))


def backoff_seconds(type: str, attempts: int) -> float:
    """Exponential with full jitter: anywhere from 0 to min(cap, base · 2^(attempts − 1))."""
    spec = handler_for(type)
    ceiling = min(spec.cap_seconds, spec.base_seconds * 2 ** min(attempts - 1, 30))
    return random.uniform(0, ceiling)  # noqa: S311 - spreads retries, guards nothing


@transaction.atomic
def end_attempt_failed(
    *, job_id: uuid.UUID, token: uuid.UUID, error_class: str, error: str, permanent: bool = False
) -> Job:
    """End the attempt as failed: to be tried again after a backoff, or dead when none is left or none can succeed.

    A job that dies passes `failed` and `retrying` on the way, in this transaction; its room's `on_dead` is part of it.
    Raises LeaseLost.
    """
    lock_place(job_id)
    job = _held(job_id, token)
    now = clock.now()
    started, what, why = job.started_at, error_class[:100], error[:2000]
    if job.status == JobStatus.RUNNING.value:
        move = advance(job, "fail", error_class=what, error=why, attempt_running=False)
        _note_move(job, move, error_class=what, error=why, started=started)
        move = advance(job, "retry")
        _note_move(job, move)
    dead = permanent or job.attempts >= job.max_attempts
    if not dead:
        Job.objects.filter(pk=job.pk).update(
            error_class=what,
            error=why,
            attempt_running=False,
            run_at=now + dt.timedelta(seconds=backoff_seconds(job.type, job.attempts)),
            **table.FREE,
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
        **table.FREE,
    )
    _note_move(job, move, error_class=what, error=why, started=started)
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
