"""Enrollment tokens, agents and their keys."""

from __future__ import annotations

import datetime as dt

from django.conf import settings
from django.db import models

from apps.core import clock
from apps.core.models import Mutable, TreeModel
from apps.core.visibility import ScopedQuerySet
from apps.tenancy.models import Environment, InEnvironment

LATE_AFTER_MISSED = 2
OFFLINE_AFTER_MISSED = 5
NAME_LENGTH = 100
TWO_HOSTS_SHOWN_FOR = dt.timedelta(minutes=10)
"""How long two hosts with one identity are reported after they last alternated."""


class Liveness(models.TextChoices):
    """Liveness of an agent: `late` after two missed heartbeats, `offline` after five or before the first."""

    ONLINE = "online"
    LATE = "late"
    OFFLINE = "offline"


def _seen_before(now: dt.datetime, missed: int) -> dt.datetime:
    return now - dt.timedelta(seconds=settings.BYTEOR_HEARTBEAT_SECONDS * missed)


class EnrollmentToken(InEnvironment, TreeModel):
    """A token with which agents enroll in one environment. Only the SHA-256 of its text is stored.

    `uses` never exceeds `max_uses`: the guarded UPDATE that counts a use and a check constraint enforce it. `labels`
    are given to every agent that enrolls with it.
    """

    environment = models.ForeignKey(
        Environment, on_delete=models.CASCADE, related_name="enrollment_tokens", db_index=False
    )
    name = models.CharField(max_length=NAME_LENGTH, blank=True)
    sha256 = models.CharField(max_length=64, unique=True, editable=False)
    public_id = models.CharField(max_length=32, editable=False)
    max_uses = models.PositiveIntegerField(default=1)
    uses = models.PositiveIntegerField(default=0, editable=False)
    labels = models.JSONField(default=dict, blank=True)
    expires_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)
    created_by = models.UUIDField(null=True, editable=False)
    created_by_name = models.CharField(max_length=200, blank=True, editable=False)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        indexes = [models.Index(fields=["environment", "id"], name="enrollment_token_page")]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(uses__lte=models.F("max_uses")), name="enrollment_token_not_overused"
            ),
            models.CheckConstraint(
                condition=models.Q(max_uses__gte=1, max_uses__lte=1000),
                name="enrollment_token_max_uses_range",
            ),
        ]

    def __str__(self) -> str:
        return self.name or self.public_id


class AgentQuerySet(ScopedQuerySet["Agent"]):
    """Agents, with the filters of lists and target selection."""

    def enrolled(self) -> AgentQuerySet:
        """Exclude agents whose keys were revoked: they can't return under that identity."""
        return self.filter(revoked_at__isnull=True)

    def with_liveness(self, status: str, now: dt.datetime) -> AgentQuerySet:
        """Agents whose `status_at(now)` is `status`."""
        late, offline = _seen_before(now, LATE_AFTER_MISSED), _seen_before(now, OFFLINE_AFTER_MISSED)
        if status == Liveness.ONLINE:
            return self.filter(revoked_at__isnull=True, last_seen_at__gt=late)
        if status == Liveness.LATE:
            return self.filter(revoked_at__isnull=True, last_seen_at__lte=late, last_seen_at__gt=offline)
        return self.filter(
            models.Q(revoked_at__isnull=False)
            | models.Q(last_seen_at__isnull=True)
            | models.Q(last_seen_at__lte=offline)
        )


class Agent(InEnvironment, TreeModel, Mutable):
    """One agent process on one host.

    People set `name` and `labels`, which select targets. The host reports `reported_labels`, `version`, `running_*` and
    `healthy`. The control plane keeps the rest: `directive_seq` and `directive_content` are the last directive,
    `highest_assigned_sequence` the highest bundle sequence ever assigned. `start_id` is random at each start of the
    agent's process, `recent_starts` its last changes, `two_hosts_at` when two processes last alternated under this
    identity. `upgrade_asked_at` is when its host last asked for a newer program, `upgrade_allowed_version` the version
    it was allowed to install.
    """

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="agents", db_index=False)
    name = models.CharField(max_length=NAME_LENGTH)
    labels = models.JSONField(default=dict, blank=True)
    reported_labels = models.JSONField(default=dict, blank=True, editable=False)
    hostname = models.CharField(max_length=253, blank=True, editable=False)
    version = models.CharField(max_length=64, blank=True, editable=False)
    last_seen_at = models.DateTimeField(null=True, editable=False)
    reported_status = models.CharField(max_length=64, blank=True, editable=False)
    healthy = models.BooleanField(default=True, editable=False)
    health_detail = models.CharField(max_length=1000, blank=True, editable=False)
    metrics = models.JSONField(default=dict, blank=True, editable=False)
    running_deployment_id = models.UUIDField(null=True, editable=False)
    running_bundle_sha256 = models.CharField(max_length=64, blank=True, editable=False)
    running_sequence = models.BigIntegerField(null=True, editable=False)
    key_set_version = models.PositiveIntegerField(default=0, editable=False)
    directive_seq = models.BigIntegerField(default=0, editable=False)
    directive_content = models.JSONField(null=True, editable=False)
    highest_assigned_sequence = models.BigIntegerField(default=0, editable=False)
    ever_assigned = models.BooleanField(default=False, editable=False)
    enrollment_token_id = models.UUIDField(null=True, editable=False)
    enrollment_request = models.CharField(max_length=64, blank=True, editable=False)
    start_id = models.CharField(max_length=64, blank=True, default="", db_default="", editable=False)
    recent_starts = models.JSONField(
        default=list, db_default=models.Value([], models.JSONField()), blank=True, editable=False
    )
    two_hosts_at = models.DateTimeField(null=True, editable=False)
    upgrade_asked_at = models.DateTimeField(null=True, editable=False)
    upgrade_allowed_version = models.CharField(max_length=32, blank=True, default="", db_default="", editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)

    objects = AgentQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["environment", "id"], name="agent_page"),
            models.Index(
                fields=["enrollment_token_id", "enrollment_request"],
                condition=~models.Q(enrollment_request=""),
                name="agent_enrollment_repeat",  # used in services.enrollment
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["environment", "name"], name="agent_name_unique"),
            models.CheckConstraint(condition=~models.Q(name=""), name="agent_named"),
        ]

    def __str__(self) -> str:
        return self.name

    def status_at(self, now: dt.datetime) -> str:
        """Return `online`, `late` or `offline` at `now`. A revoked agent is offline."""
        if self.revoked_at is not None or self.last_seen_at is None:
            return Liveness.OFFLINE.value
        if self.last_seen_at > _seen_before(now, LATE_AFTER_MISSED):
            return Liveness.ONLINE.value
        if self.last_seen_at > _seen_before(now, OFFLINE_AFTER_MISSED):
            return Liveness.LATE.value
        return Liveness.OFFLINE.value

    @property
    def status(self) -> str:
        """`status_at` the current time."""
        return self.status_at(clock.now())

    def reports_from_two_hosts(self, now: dt.datetime) -> bool:
        """Whether two processes recently alternated under this identity: the state of one host was copied to another."""
        return self.two_hosts_at is not None and now - self.two_hosts_at < TWO_HOSTS_SHOWN_FOR

    @property
    def running(self) -> dict[str, object] | None:
        """What the host reports to run, in the API's form, or None."""
        if self.running_deployment_id is None:
            return None
        return {
            "deployment_id": str(self.running_deployment_id),
            "bundle_sha256": self.running_bundle_sha256,
            "sequence": self.running_sequence,
        }


class AgentKey(TreeModel):
    """A runtime key of an agent. Only the SHA-256 of its text is stored.

    After a rotation two keys work: `expires_at` of the old one is set when the new one is first used.
    """

    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="keys")
    sha256 = models.CharField(max_length=64, unique=True, editable=False)
    public_id = models.CharField(max_length=32, editable=False)
    first_used_at = models.DateTimeField(null=True, editable=False)
    last_used_at = models.DateTimeField(null=True, editable=False)
    expires_at = models.DateTimeField(null=True, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)

    key_set_version: int | None
    """Version of the organization's key set; set only on keys that `AgentKeyAuthentication` returns."""

    def __str__(self) -> str:
        return self.public_id
