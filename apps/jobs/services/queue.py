"""Putting work in the queue. The row is written in the transaction of its cause, so the commit is the delivery."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping
from typing import Any

from django.db import transaction

from apps.access.principals import Principal
from apps.audit import services as audit
from apps.core import clock, wake
from apps.core.fsm import advance
from apps.jobs.models import Chore, Job, JobAttempt, JobStatus
from apps.jobs.registry import handler_for

WAKE_JOBS = "jobs"
WAKE_CHORES = "chores"


@transaction.atomic
def enqueue(
    *,
    type: str,
    organization_id: uuid.UUID,
    environment_id: uuid.UUID | None,
    subject_id: uuid.UUID,
    payload: Mapping[str, Any] | None = None,
    run_at: dt.datetime | None = None,
    supersede: bool = False,
) -> Job:
    """Queue a job of `type` about `subject_id`, in the caller's transaction; it is delivered when that commits.

    `payload` is small JSON without secrets. With `supersede`, older ones of the same type and subject that still wait
    are noted as superseded and complete without doing anything.
    """
    spec = handler_for(type)
    if supersede:
        Job.objects.filter(
            type=type, subject_id=subject_id, status=JobStatus.QUEUED.value, lease_token__isnull=True
        ).update(payload={"superseded": True})
    job = Job.objects.create(
        organization_id=organization_id,
        environment_id=environment_id,
        type=type,
        subject_id=subject_id,
        payload=dict(payload or {}),
        max_attempts=spec.max_attempts,
        run_at=run_at or clock.now(),
    )
    wake.notify(WAKE_JOBS)
    return job


@transaction.atomic
def retry_dead_letter(*, actor: Principal, job: Job) -> Job:
    """Queue a dead job again, with fresh attempts. StateConflict unless it is `dead_letter`."""
    move = advance(
        job,
        "requeue",
        attempts=0,
        max_attempts=handler_for(job.type).max_attempts,
        trouble_since=None,
        progress=0,
        error_class="",
        error="",
        note="",
        run_at=clock.now(),
        started_at=None,
        finished_at=None,
    )
    JobAttempt.objects.create(job=job, number=0, from_status=move.from_, to_status=move.to)
    wake.notify(WAKE_JOBS)
    audit.record(
        organization_id=job.organization_id,
        action="job.retried",
        actor=actor.ref,
        target=f"job:{job.pk}",
        scope={"organization_id": job.organization_id, "environment_id": job.environment_id},
        details={"type": job.type, "subject_id": job.subject_id},
    )
    return job


def wake_chore(name: str) -> None:
    """Let the chore `name` run as soon as the caller's transaction commits."""
    now = clock.now()
    if not Chore.objects.filter(pk=name).update(next_run_at=now):
        Chore.objects.get_or_create(name=name, defaults={"next_run_at": now})
    wake.notify(WAKE_CHORES)
