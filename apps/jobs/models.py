"""The job table, which is the queue; a row for every move of a job; chores and worker heartbeats."""

from __future__ import annotations

from typing import Any

from django.db import models
from django_fsm import transition

from apps.core import clock
from apps.core.fsm import GuardedModel, GuardedQuerySet, StatusField
from apps.core.models import TreeModel
from apps.tenancy.models import Environment, Organization


class JobStatus(models.TextChoices):
    """`retrying` covers the waiting and the running of every attempt after the first."""

    QUEUED = "queued"
    RUNNING = "running"
    FAILED = "failed"
    RETRYING = "retrying"
    COMPLETED = "completed"
    DEAD_LETTER = "dead_letter"


S = JobStatus
WAITING = (S.QUEUED.value, S.RETRYING.value)


class Job(GuardedModel, TreeModel):
    """One piece of background work.

    Legal moves: queued → running → completed; running → failed → retrying → completed | dead_letter; dead_letter →
    queued by hand. A worker that takes it counts the attempt and writes its lease in one statement: `lease_token` fences what
    comes late, `lease_slot` is one of the places that its organization has (unique, so the cap can't be passed),
    `lease_cluster` and `lease_pid` say who has it. `attempt_running` is true until the attempt has ended.
    Can be taken: waiting, due, without a lease.
    """

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="jobs")
    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, null=True, related_name="jobs")
    type = models.CharField(max_length=64)
    subject_id = models.UUIDField()
    payload = models.JSONField(default=dict)
    status = StatusField(default=S.QUEUED.value, choices=S.choices)
    attempts = models.PositiveIntegerField(default=0)
    max_attempts = models.PositiveIntegerField(default=1)
    progress = models.PositiveSmallIntegerField(default=0)
    error_class = models.CharField(max_length=100, blank=True)
    error = models.CharField(max_length=2000, blank=True)
    note = models.CharField(max_length=500, blank=True)
    run_at = models.DateTimeField(default=clock.now)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    attempt_running = models.BooleanField(default=False)
    lease_token = models.UUIDField(null=True)
    lease_expires_at = models.DateTimeField(null=True)
    lease_slot = models.PositiveSmallIntegerField(null=True)
    lease_cluster = models.UUIDField(null=True)
    lease_pid = models.PositiveIntegerField(null=True)

    objects = GuardedQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(status__in=S.values), name="job_status_known"),
            models.CheckConstraint(condition=models.Q(progress__lte=100), name="job_progress_range"),
            # the cap on what runs per organization; used by its count, and by the sweep of expired leases
            models.UniqueConstraint(
                fields=["organization", "lease_slot"],
                condition=models.Q(lease_slot__isnull=False),
                name="job_slot_once",
            ),
        ]
        indexes = [
            # used by taking: whose jobs wait, and which of an organization is due first
            models.Index(
                fields=["organization", "run_at", "id"],
                condition=models.Q(status__in=["queued", "retrying"], lease_token__isnull=True),
                name="job_waiting",
            ),
            # used by the environment's list, and to supersede older ones of a subject
            models.Index(fields=["environment", "-id"], name="job_by_environment"),
            models.Index(fields=["environment", "status", "id"], name="job_by_status"),  # used by the list's filter
            models.Index(fields=["subject_id", "type"], name="job_by_subject"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.status}"

    @transition(field="status", source=[S.QUEUED.value], target=S.RUNNING.value)
    def begin(self) -> None:
        """The first attempt starts."""

    @transition(field="status", source=[S.RUNNING.value, S.RETRYING.value], target=S.COMPLETED.value)
    def complete(self) -> None:
        """It is done."""

    @transition(field="status", source=[S.RUNNING.value], target=S.FAILED.value)
    def fail(self) -> None:
        """The first attempt failed."""

    @transition(field="status", source=[S.FAILED.value], target=S.RETRYING.value)
    def retry(self) -> None:
        """It is to be tried again, or to be buried."""

    @transition(field="status", source=[S.RETRYING.value], target=S.DEAD_LETTER.value)
    def bury(self) -> None:
        """No attempt is left, or none can succeed."""

    @transition(field="status", source=[S.DEAD_LETTER.value], target=S.QUEUED.value)
    def requeue(self) -> None:
        """A person asked for it again."""


class JobAttempt(TreeModel):
    """A row for every move of a job and for every later attempt that starts."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="attempt_rows")
    number = models.PositiveIntegerField()
    from_status = models.CharField(max_length=16)
    to_status = models.CharField(max_length=16)
    error_class = models.CharField(max_length=100, blank=True)
    error = models.CharField(max_length=2000, blank=True)
    duration_ms = models.PositiveBigIntegerField(null=True)

    def __str__(self) -> str:
        return f"{self.number}: {self.from_status} → {self.to_status}"


class Chore(models.Model):
    """What the system does for itself: when next, and how the last run went. Whoever writes the lease runs it."""

    name = models.CharField(primary_key=True, max_length=64)
    next_run_at = models.DateTimeField(default=clock.now)
    last_started_at = models.DateTimeField(null=True)
    last_finished_at = models.DateTimeField(null=True)
    last_result = models.IntegerField(null=True)
    last_error = models.CharField(max_length=500, blank=True)
    lease_token = models.UUIDField(null=True)
    lease_expires_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.name


class WorkerBeat(models.Model):
    """A sign of life that went through a worker's whole pipeline."""

    cluster_id = models.UUIDField(primary_key=True)
    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    beat_at = models.DateTimeField(default=clock.now)

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


def job_rows(**filters: Any) -> models.QuerySet[Job]:
    """Jobs, with the environment and organization that a rule needs."""
    return Job.objects.select_related("organization", "environment").filter(**filters)
