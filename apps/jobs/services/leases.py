"""Who has a job, and for how long."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import structlog
from django.db import connection, transaction
from django.db.models import Count, Q

from apps.core import clock, wake
from apps.core.db import lock_row
from apps.core.ids import new_id
from apps.jobs.models import WAITING, Job
from apps.jobs.registry import LeaseLost, handler_types
from apps.jobs.services.moves import LEASE, end_attempt_failed
from apps.jobs.services.queue import WAKE_JOBS
from apps.runtime.faults import fault_point

log = structlog.get_logger(__name__)

RUNNING_PER_ORGANIZATION = 8
_CLAIM_LOCK = 4_217_001


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this process has for now."""

    job_id: uuid.UUID
    type: str
    token: uuid.UUID


def _due() -> Q:
    return Q(status__in=WAITING, lease_token__isnull=True, run_at__lte=clock.now(), type__in=handler_types())


def claim() -> Claim | None:
    """Lease the job that has been due longest; None when there is none for us.

    Organizations that have 8 jobs leased already are passed over, so that no tenant starves another. One claim at a
    time (a transaction lock on PostgreSQL, the write lock on SQLite) keeps that count exact.
    """
    if not Job.objects.filter(_due()).exists():
        return None
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_CLAIM_LOCK])
        full = (
            Job.objects.filter(lease_token__isnull=False)
            .values("organization_id")
            .annotate(n=Count("pk"))
            .filter(n__gte=RUNNING_PER_ORGANIZATION)
            .values_list("organization_id", flat=True)
        )
        row = Job.objects.filter(_due()).exclude(organization_id__in=list(full)).order_by("run_at", "pk").first()
        if row is None:
            return None
        token = new_id()
        taken = Job.objects.filter(pk=row.pk, lease_token__isnull=True, status=row.status).update(
            lease_token=token, lease_expires_at=clock.now() + LEASE
        )
        fault_point("jobs.claim.before_commit")
        return Claim(row.pk, row.type, token) if taken else None


def extend_lease(*, job_id: uuid.UUID, token: uuid.UUID) -> bool:
    """Keep the job for another lease; False when it is not ours any more."""
    rows = Job.objects.filter(pk=job_id, lease_token=token)
    return bool(rows.update(lease_expires_at=clock.now() + LEASE))


def release_expired() -> int:
    """Take back what workers have lost: an attempt that had begun has failed, one that had not is simply free again."""
    expired = Job.objects.filter(lease_token__isnull=False, lease_expires_at__lt=clock.now())
    done = 0
    for job_id, token in list(expired.values_list("pk", "lease_token")[:200]):
        with transaction.atomic():
            job = lock_row(Job.objects.filter(pk=job_id, lease_token=token, lease_expires_at__lt=clock.now()))
            if job is None:
                continue
            done += 1
            if not job.attempt_running:
                Job.objects.filter(pk=job.pk).update(lease_token=None, lease_expires_at=None)
                wake.notify(WAKE_JOBS)
                continue
            try:
                end_attempt_failed(
                    job_id=job.pk,
                    token=job.lease_token,
                    error_class="LeaseExpired",
                    error="The worker that ran it stopped renewing its lease.",
                )
            except LeaseLost:
                continue
        fault_point("jobs.lease.after_release")
        log.warning("job lease expired", job_id=str(job_id))
    return done
