"""Config bundles, deployments, their targets and their events."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from django.db import models
from django_fsm import transition

from apps.core.fsm import GuardedModel, StatusField
from apps.core.models import TreeModel
from apps.core.visibility import GuardedScopedQuerySet, ScopedQuerySet
from apps.deployments.rollout import Phase, phases_of
from apps.tenancy.models import Environment, InEnvironment

DEFAULT_TIMEOUT_SECONDS = 600


class ConfigBundle(InEnvironment, TreeModel):
    """A pipeline version and the configuration that it runs with. Immutable, also by a database trigger.

    `config_hash` is `sha256:` of the configuration's RFC 8785 form. `used_at` is set when a deployment first uses the
    bundle; from then on it can't be deleted on its own.
    """

    environment = models.ForeignKey(
        Environment, on_delete=models.CASCADE, related_name="config_bundles", db_index=False
    )
    version_id = models.UUIDField(editable=False)
    version_number = models.PositiveIntegerField(editable=False)
    pipeline_name = models.CharField(max_length=63, editable=False)
    spec_hash = models.CharField(max_length=71, editable=False)
    config = models.JSONField(default=dict, editable=False)
    config_hash = models.CharField(max_length=71, editable=False)
    created_by = models.UUIDField(null=True, editable=False)
    created_by_name = models.CharField(max_length=200, blank=True, editable=False)
    used_at = models.DateTimeField(null=True, editable=False)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        indexes = [models.Index(fields=["environment", "id"], name="config_bundle_page")]

    def __str__(self) -> str:
        return f"{self.pipeline_name} v{self.version_number} {self.config_hash[7:15]}"


class DeploymentStatus(models.TextChoices):
    """Status of a deployment."""

    PENDING_APPROVAL = "pending_approval", "Pending approval"
    APPROVED = "approved", "Approved"
    DENIED = "denied", "Denied"
    BUILDING = "building", "Building"
    DEPLOYING = "deploying", "Deploying"
    ACTIVE = "active", "Active"
    FAILED = "failed", "Failed"
    ROLLING_BACK = "rolling_back", "Rolling back"
    ROLLED_BACK = "rolled_back", "Rolled back"


S = DeploymentStatus

IN_FLIGHT = (S.PENDING_APPROVAL, S.APPROVED, S.BUILDING, S.DEPLOYING, S.ROLLING_BACK)
"""Statuses that count against the environment's cap."""
HOLDS_TARGETS = (S.BUILDING, S.DEPLOYING, S.ROLLING_BACK)
"""Statuses in which a deployment uses its targets exclusively."""
FINAL = (S.DENIED, S.ROLLED_BACK)


class DeploymentQuerySet(GuardedScopedQuerySet):  # type: ignore[override]  # as its base
    """QuerySet of deployments."""

    def in_flight(self) -> DeploymentQuerySet:
        """Return the deployments that count against the cap."""
        return self.filter(status__in=IN_FLIGHT)


class Deployment(InEnvironment, GuardedModel, TreeModel):
    """Rollout of one config bundle to a fixed set of agents.

    Legal transitions:
    pending_approval → approved, denied · approved → building, denied · building → deploying, failed, denied ·
    deploying → active, failed, rolling_back · active → rolling_back · failed → rolling_back ·
    rolling_back → rolled_back, failed. Final: denied, rolled_back.

    `status_reason` begins with a stable code. `sequence`, `built_at_ms` (Unix ms) and `signing_kid` are fixed when
    the build first starts, so that a repeated build yields the same bytes. `build_queued_at` is set while a build job
    is queued or running: the targets are busy from then on. `rolling_back_at` is when it last began to roll back: once
    set, no agent is asked to run it again. `superseded_by` is the deployment that took over its last target.
    `key_revoked_at` is when the key that signed its bundle or its approval's credential was revoked: it is not delivered
    from then on.
    `phase` is the present or last phase, since `phase_started_at`; `bake_started_at` and `bake_ends_at` are set only while
    that phase bakes. `apps.deployments.rollout` defines how phases advance.
    """

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="deployments", db_index=False)
    status = StatusField(choices=DeploymentStatus.choices, default=S.PENDING_APPROVAL.value)
    status_reason = models.CharField(max_length=1000, blank=True, editable=False)
    bundle_id = models.UUIDField(editable=False)
    version_id = models.UUIDField(editable=False)
    version_number = models.PositiveIntegerField(editable=False)
    pipeline_name = models.CharField(max_length=63, editable=False)
    spec_hash = models.CharField(max_length=71, editable=False)
    config_hash = models.CharField(max_length=71, editable=False)
    capabilities = models.JSONField(default=list, editable=False)
    approval_id = models.UUIDField(editable=False)
    requested_by = models.UUIDField(null=True, editable=False)
    requested_by_name = models.CharField(max_length=200, blank=True, editable=False)
    reason = models.CharField(max_length=2000, blank=True, editable=False)
    target_selector = models.JSONField(editable=False)
    strategy = models.JSONField(editable=False)
    timeout_seconds = models.PositiveIntegerField(default=DEFAULT_TIMEOUT_SECONDS, editable=False)
    sequence = models.BigIntegerField(null=True, editable=False)
    built_at_ms = models.BigIntegerField(null=True, editable=False)
    signing_kid = models.CharField(max_length=100, blank=True, editable=False)
    bundle_sha256 = models.CharField(max_length=64, blank=True, editable=False)
    superseded_by = models.UUIDField(null=True, editable=False)
    approved_at = models.DateTimeField(null=True, editable=False)
    build_queued_at = models.DateTimeField(null=True, editable=False)
    deploying_at = models.DateTimeField(null=True, editable=False)
    rolling_back_at = models.DateTimeField(null=True, editable=False)
    key_revoked_at = models.DateTimeField(null=True, editable=False)
    settled_at = models.DateTimeField(null=True, editable=False)
    phase = models.PositiveIntegerField(null=True, editable=False)
    phase_started_at = models.DateTimeField(null=True, editable=False)
    bake_started_at = models.DateTimeField(null=True, editable=False)
    bake_ends_at = models.DateTimeField(null=True, editable=False)
    updated_at = models.DateTimeField(null=True, editable=False)

    objects = DeploymentQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["environment", "id"], name="deployment_page"),
            models.Index(fields=["environment", "status", "id"], name="deployment_by_status"),
            models.Index(
                fields=["status"],
                condition=models.Q(status__in=["deploying", "rolling_back"]),
                name="deployment_timing",  # used by the timeout chore
            ),
            models.Index(
                fields=["bake_ends_at"],
                condition=models.Q(bake_ends_at__isnull=False),
                name="deployment_baking",  # used by the chore that ends bakes
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(status__in=DeploymentStatus.values), name="deployment_status_known"
            ),
            models.UniqueConstraint(fields=["environment", "sequence"], name="deployment_sequence_unique"),
            models.CheckConstraint(
                condition=~models.Q(status__in=["deploying", "active", "rolling_back", "rolled_back"])
                | (models.Q(sequence__isnull=False, deploying_at__isnull=False) & ~models.Q(bundle_sha256="")),
                name="deployment_built_before_deployed",
            ),
            models.CheckConstraint(
                condition=models.Q(timeout_seconds__gte=1, timeout_seconds__lte=86400),
                name="deployment_timeout_range",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.pipeline_name} v{self.version_number} ({self.status})"

    @transition(field="status", source=S.PENDING_APPROVAL.value, target=S.APPROVED.value)
    def approve(self) -> None:
        """Approve: the approval was granted, or none is required."""

    @transition(
        field="status",
        source=[S.PENDING_APPROVAL.value, S.APPROVED.value, S.BUILDING.value],
        target=S.DENIED.value,
    )
    def deny(self) -> None:
        """Deny: the approval was denied, expired, was withdrawn, or was revoked before delivery."""

    @transition(field="status", source=S.APPROVED.value, target=S.BUILDING.value)
    def start_build(self) -> None:
        """Start the build."""

    @transition(field="status", source=S.BUILDING.value, target=S.DEPLOYING.value)
    def deploy(self) -> None:
        """Start deploying: the bundle is built and signed, and the targets are assigned."""

    @transition(field="status", source=S.DEPLOYING.value, target=S.ACTIVE.value)
    def activate(self) -> None:
        """Complete: every target settled, and at most `max_failures` failed."""

    @transition(
        field="status",
        source=[S.BUILDING.value, S.DEPLOYING.value, S.ROLLING_BACK.value],
        target=S.FAILED.value,
    )
    def fail(self) -> None:
        """Fail: the build job is dead, too many targets failed, or the rollback failed."""

    @transition(
        field="status",
        source=[S.DEPLOYING.value, S.ACTIVE.value, S.FAILED.value],
        target=S.ROLLING_BACK.value,
    )
    def roll_back(self) -> None:
        """Start to roll back: on request, on revocation while deploying, or automatically after a failure."""

    @transition(field="status", source=S.ROLLING_BACK.value, target=S.ROLLED_BACK.value)
    def confirm_rollback(self) -> None:
        """Complete the rollback: every reachable target confirmed it."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The rollout's phases; a single phase of all targets without a bake when it is not phased."""
        return phases_of(self.strategy)

    @property
    def phased(self) -> bool:
        """True if the rollout is phased."""
        return bool(self.strategy.get("type") == "phased")

    @property
    def max_failures(self) -> int:
        """Maximum number of targets that may fail or be unreachable."""
        return int(self.strategy.get("max_failures", 0))

    @property
    def auto_rollback(self) -> bool:
        """True if it rolls back automatically when it fails."""
        return bool(self.strategy.get("auto_rollback", False))


class TargetStatus(models.TextChoices):
    """Status of one agent within a deployment."""

    PENDING = "pending"
    ASSIGNED = "assigned"
    FETCHED = "fetched"
    VERIFIED = "verified"
    ACTIVATED = "activated"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    UNREACHABLE = "unreachable"


def describe_counts(counts: Mapping[str, int]) -> str:
    """Format counts per target status as text; empty without targets."""
    return ", ".join(f"{counts[s.value]} {s.value.replace('_', ' ')}" for s in TargetStatus if counts.get(s.value))


class Target(TreeModel):
    """One agent of a deployment. `agent_id` is no foreign key: the row outlives the agent.

    `phase` is the rollout's phase (0 for `all_at_once`), fixed by the request; `phase_started_at` is when the phase or the
    rollback began on this target. `sequence` is the deployment's, set when the bundle is assigned: a target without one
    never received a directive. `previous_*` is what the agent had last confirmed at the assignment. `rollback_at` is when
    this target was asked to roll back. `settled_at` is set once no further report is expected. `report` holds `reason`,
    `tuning`, `log_tail`, and `failure`: why it failed, kept after a rollback.
    """

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="targets", db_index=False)
    agent_id = models.UUIDField(editable=False)
    agent_name = models.CharField(max_length=100, editable=False)
    status = models.CharField(max_length=16, choices=TargetStatus, default=TargetStatus.PENDING, editable=False)
    phase = models.PositiveIntegerField(default=0, editable=False)
    sequence = models.BigIntegerField(null=True, editable=False)
    report = models.JSONField(default=dict, editable=False)
    previous_deployment_id = models.UUIDField(null=True, editable=False)
    previous_bundle_sha256 = models.CharField(max_length=64, blank=True, editable=False)
    phase_started_at = models.DateTimeField(null=True, editable=False)
    handed_out_at = models.DateTimeField(null=True, editable=False)
    rollback_at = models.DateTimeField(null=True, editable=False)
    settled_at = models.DateTimeField(null=True, editable=False)
    agent_gone_at = models.DateTimeField(null=True, editable=False)
    updated_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        indexes = [
            models.Index(
                fields=["agent_id", "-sequence"],
                condition=models.Q(sequence__isnull=False),
                name="target_walk",  # used by selectors.desired and services.extend_timeout_for_storage
            ),
        ]
        constraints = [
            # its index also serves the look-ups by deployment
            models.UniqueConstraint(fields=["deployment", "agent_id"], name="target_once"),
            models.CheckConstraint(condition=models.Q(status__in=TargetStatus.values), name="target_status_known"),
            models.CheckConstraint(
                condition=models.Q(status__in=["pending", "failed"]) | models.Q(sequence__isnull=False),
                name="target_assigned_with_sequence",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.agent_name}: {self.status}"

    def deadline(self, timeout_seconds: int) -> dt.datetime | None:
        """When the target becomes unreachable without a report; None while no report is expected."""
        if self.phase_started_at is None:
            return None
        return self.phase_started_at + dt.timedelta(seconds=timeout_seconds)


class Confirmation(TreeModel):
    """What an agent last confirmed to run. `deployment_id` None: it is stopped."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="confirmations")
    agent_id = models.UUIDField(unique=True, editable=False)
    deployment_id = models.UUIDField(null=True, editable=False)
    bundle_sha256 = models.CharField(max_length=64, blank=True, editable=False)
    sequence = models.BigIntegerField(null=True, editable=False)
    confirmed_at = models.DateTimeField(editable=False)

    def __str__(self) -> str:
        return f"{self.agent_id}: {self.deployment_id}"


class DeploymentEvent(TreeModel):
    """Immutable record of a status transition: actor, reason and trigger. `from_status` is empty for the first."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="events", db_index=False)
    from_status = models.CharField(max_length=32, blank=True, editable=False)
    to_status = models.CharField(max_length=32, editable=False)
    actor = models.CharField(max_length=200, editable=False)
    actor_name = models.CharField(max_length=200, blank=True, editable=False)
    trigger = models.CharField(max_length=64, editable=False)
    reason = models.CharField(max_length=2000, blank=True, editable=False)

    class Meta:
        indexes = [models.Index(fields=["deployment", "id"], name="deployment_event_page")]

    def __str__(self) -> str:
        return f"{self.from_status} → {self.to_status}"

    @property
    def at(self) -> dt.datetime:
        """Time of the event."""
        return self.created_at


class PhaseMark(models.TextChoices):
    """Kind of a phase event."""

    STARTED = "started"
    BAKING = "baking"
    PASSED = "passed"


class PhaseEvent(TreeModel):
    """Immutable record that a phase began, began to bake, or passed; each at most once.

    Separate from `DeploymentEvent`, whose rows are status transitions only.
    """

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="phase_events", db_index=False)
    phase = models.PositiveIntegerField(editable=False)
    mark = models.CharField(max_length=16, choices=PhaseMark, editable=False)
    detail = models.CharField(max_length=500, blank=True, editable=False)

    class Meta:
        constraints = [
            # its index also serves the look-ups by deployment
            models.UniqueConstraint(fields=["deployment", "phase", "mark"], name="phase_event_once"),
            models.CheckConstraint(condition=models.Q(mark__in=PhaseMark.values), name="phase_event_mark_known"),
        ]

    def __str__(self) -> str:
        return f"phase {self.phase + 1} {self.mark}"
