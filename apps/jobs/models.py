"""The job table, which is the queue; a row for every move of a job; chores and worker heartbeats."""

from __future__ import annotations

from django.db import models
from django_fsm import transition

from apps.core import clock
from apps.core.fsm import GuardedModel, StatusField
from apps.core.models import TreeModel
from apps.core.visibility import GuardedScopedQuerySet
from apps.tenancy.models import Environment, InEnvironment, Organization


class JobStatus(models.TextChoices):
    """`retrying` covers the waiting and the running of every attempt after the first."""

    QUEUED = "queued"
    RUNNING = "running"
    FAILED = "failed"
    RETRYING = "retrying"
    COMPLETED = "completed"
    DEAD_LETTER = "dead_letter"


S = JobStatus


class Job(InEnvironment, GuardedModel, TreeModel):
    """One piece of background work.

    Legal moves: queued → running → completed; running → failed → retrying → completed | dead_letter; dead_letter →
    queued by hand. A cluster that claims it writes the lease and nothing else: `lease_token` fences late writes,
    `lease_slot` is one of the places that its organization has (unique, so the cap can't be passed), `lease_cluster` is the
    cluster that holds it. The worker that begins it counts the attempt, moves it to `running`, and writes `lease_pid`; `attempt_running` is
    true until the attempt has ended. `trouble_since` is when attempts began to fail for what is outside (storage, network); for
    half an hour they are not counted. Can be claimed: waiting, due, without a lease.
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
    trouble_since = models.DateTimeField(null=True)
    lease_token = models.UUIDField(null=True)
    lease_expires_at = models.DateTimeField(null=True)
    lease_slot = models.PositiveSmallIntegerField(null=True)
    lease_cluster = models.UUIDField(null=True)
    lease_pid = models.PositiveIntegerField(null=True)

    objects = GuardedScopedQuerySet.as_manager()

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
            # used by claims: whose jobs wait, and which of an organization is due first. SQLite uses a partial index only where
            # the query repeats its condition without parameters
            models.Index(
                fields=["organization", "run_at", "id"],
                condition=models.Q(finished_at__isnull=True, lease_token__isnull=True),
                name="job_unfinished",
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
        """The handler succeeded."""

    @transition(field="status", source=[S.RUNNING.value], target=S.FAILED.value)
    def fail(self) -> None:
        """The first attempt failed."""

    @transition(field="status", source=[S.FAILED.value], target=S.RETRYING.value)
    def retry(self) -> None:
        """The job is to be tried again, or becomes a dead letter."""

    @transition(field="status", source=[S.RETRYING.value], target=S.DEAD_LETTER.value)
    def bury(self) -> None:
        """No attempt is left, or none can succeed."""

    @transition(field="status", source=[S.DEAD_LETTER.value], target=S.QUEUED.value)
    def requeue(self) -> None:
        """A person queues the job again."""


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
    """A chore of the system: when it runs next, and how the last run went. The process that writes the lease runs it.

    `last_failed` counts the items that failed in the last run, or that wait for their next try (`core.isolation`).
    """

    name = models.CharField(primary_key=True, max_length=64)
    next_run_at = models.DateTimeField(default=clock.now)
    last_started_at = models.DateTimeField(null=True)
    last_finished_at = models.DateTimeField(null=True)
    last_result = models.IntegerField(null=True)
    last_error = models.CharField(max_length=500, blank=True)
    last_failed = models.PositiveIntegerField(db_default=0)
    lease_token = models.UUIDField(null=True)
    lease_expires_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.name


class WorkerBeat(models.Model):
    """The last heartbeat of a cluster: a task that came through broker, queue and worker."""

    cluster_id = models.UUIDField(primary_key=True)
    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    beat_at = models.DateTimeField(default=clock.now)

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class ProcessClock(models.Model):
    """A live process and how far its clock was from the database's when it last looked."""

    process_id = models.UUIDField(primary_key=True)
    kind = models.CharField(max_length=16)
    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    ahead_ms = models.BigIntegerField()
    seen_at = models.DateTimeField()  # by the database's clock

    class Meta:
        indexes = [models.Index(fields=["seen_at"], name="process_clock_seen")]  # used by the comparison of live ones

    def __str__(self) -> str:
        return f"{self.kind} {self.host}:{self.pid}"
