"""Enrollment tokens, agents and the keys they hold."""

from __future__ import annotations

import datetime as dt

from django.conf import settings
from django.db import models

from apps.access.principals import Principal
from apps.access.selectors import environments_visible_to
from apps.core import clock
from apps.core.models import Mutable, TreeModel
from apps.tenancy.models import Environment

LATE_AFTER_MISSED = 2
OFFLINE_AFTER_MISSED = 5
NAME_LENGTH = 100


class Liveness(models.TextChoices):
    """What an agent's silence says: `late` after two missed heartbeats, `offline` after five or before the first."""

    ONLINE = "online"
    LATE = "late"
    OFFLINE = "offline"


def _seen_before(now: dt.datetime, missed: int) -> dt.datetime:
    return now - dt.timedelta(seconds=settings.BYTEOR_HEARTBEAT_SECONDS * missed)


class EnrollmentToken(TreeModel):
    """What lets a new agent into one environment. Only the SHA-256 of its text is kept.

    `uses` never passes `max_uses`: the guarded UPDATE that counts a use and the check constraint both say so.
    `labels` are given to every agent that enrolls with it.
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


class AgentQuerySet(models.QuerySet["Agent"]):
    """Agents, with what the lists and the target selection ask for."""

    def enrolled(self) -> AgentQuerySet:
        """Without those whose key was revoked: they can't come back under that identity."""
        return self.filter(revoked_at__isnull=True)

    def visible_to(self, principal: Principal) -> AgentQuerySet:
        """Only those in environments that `principal` may see."""
        return self.filter(environment__in=environments_visible_to(principal))

    def with_liveness(self, status: str, now: dt.datetime) -> AgentQuerySet:
        """Those whose `status_at(now)` is `status`."""
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


class Agent(TreeModel, Mutable):
    """One agent process on one host.

    People set `name` and `labels` (the ones that select); everything else is what the host claims
    (`reported_labels`, `version`, `running_*`, `healthy`) or what the control plane keeps about what it told
    the agent: `directive_seq` and `directive_content` are the last directive given out,
    `highest_assigned_sequence` the highest bundle sequence ever assigned to it.
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
        """`online`, `late` or `offline` at `now`; a revoked agent is offline."""
        if self.revoked_at is not None or self.last_seen_at is None:
            return Liveness.OFFLINE.value
        if self.last_seen_at > _seen_before(now, LATE_AFTER_MISSED):
            return Liveness.ONLINE.value
        if self.last_seen_at > _seen_before(now, OFFLINE_AFTER_MISSED):
            return Liveness.LATE.value
        return Liveness.OFFLINE.value

    @property
    def status(self) -> str:
        """`status_at` this moment."""
        return self.status_at(clock.now())

    @property
    def running(self) -> dict[str, object] | None:
        """What the host says it runs, as the API shows it: None for nothing."""
        if self.running_deployment_id is None:
            return None
        return {
            "deployment_id": str(self.running_deployment_id),
            "bundle_sha256": self.running_bundle_sha256,
            "sequence": self.running_sequence,
        }


class AgentKey(TreeModel):
    """A runtime key of an agent. Only the SHA-256 of its text is kept.

    After a rotation two work side by side: `expires_at` of the old one is set when the new one is first used.
    """

    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="keys")
    sha256 = models.CharField(max_length=64, unique=True, editable=False)
    public_id = models.CharField(max_length=32, editable=False)
    first_used_at = models.DateTimeField(null=True, editable=False)
    last_used_at = models.DateTimeField(null=True, editable=False)
    expires_at = models.DateTimeField(null=True, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)

    def __str__(self) -> str:
        return self.public_id
