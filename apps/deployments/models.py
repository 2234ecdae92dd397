"""Config bundles, deployments, their targets and what happened to them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import TypeVar

from django.db import models
from django_fsm import transition

from apps.access.principals import Principal
from apps.access.selectors import environments_visible_to
from apps.core.fsm import GuardedModel, GuardedQuerySet, StatusField
from apps.core.models import TreeModel
from apps.deployments.rollout import Phase, phases_of
from apps.tenancy.models import Environment

M = TypeVar("M", bound=models.Model)

DEFAULT_TIMEOUT_SECONDS = 600


class ScopedQuerySet(models.QuerySet[M]):
    """Rows that hang on an environment."""

    def visible_to(self, principal: Principal) -> ScopedQuerySet[M]:
        """Only those in environments that `principal` may see."""
        return self.filter(environment__in=environments_visible_to(principal))


class ConfigBundle(TreeModel):
    """A pipeline version and the configuration it runs with. Its content never changes (a trigger says so too).

    `config_hash` is `sha256:` of the configuration's RFC 8785 form. `used_at` is set when a deployment first names
    it; from then on it can't be deleted on its own.
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
    """Where a deployment is on its way."""

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
"""What counts against the environment's cap."""
HOLDS_TARGETS = (S.BUILDING, S.DEPLOYING, S.ROLLING_BACK)
"""While a deployment is in one of these, no other may begin on its targets."""
FINAL = (S.DENIED, S.ROLLED_BACK)


class DeploymentQuerySet(GuardedQuerySet):
    """Deployments, with what the rules ask for."""

    def visible_to(self, principal: Principal) -> DeploymentQuerySet:
        """Only those in environments that `principal` may see."""
        return self.filter(environment__in=environments_visible_to(principal))

    def in_flight(self) -> DeploymentQuerySet:
        """Those that count against the cap."""
        return self.filter(status__in=IN_FLIGHT)

    def holding(self) -> DeploymentQuerySet:
        """Those that nobody else may share a target with."""
        return self.filter(status__in=HOLDS_TARGETS)


class Deployment(GuardedModel, TreeModel):
    """One bundle on its way to a fixed set of agents.

    The moves, and there are no others:
    pending_approval → approved, denied · approved → building, denied · building → deploying, failed, denied ·
    deploying → active, failed, rolling_back · active → rolling_back · failed → rolling_back ·
    rolling_back → rolled_back, failed. Final: denied, rolled_back.

    `status_reason` begins with a stable code. `sequence` and `built_at_ms` (Unix ms) and `signing_kid` are fixed when
    the build first starts, so that a repeated build makes the same bytes. `build_queued_at` is set while a build job
    is on its way: its targets are taken from then on. `rolling_back_at` is when it last began to roll back: once set,
    nobody is ever asked to run it again. `superseded_by` is who took over its last target. `key_revoked_at` is when the key
    that signed its bundle or its approval's credential was revoked: nobody is handed it any more.
    `phase` is the phase it is in, or was in last, since `phase_started_at`; `bake_started_at` and `bake_ends_at` are
    set only while that phase bakes. `apps.deployments.rollout` says how it goes from one to the next.
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
        """Approval granted, or none needed."""

    @transition(
        field="status",
        source=[S.PENDING_APPROVAL.value, S.APPROVED.value, S.BUILDING.value],
        target=S.DENIED.value,
    )
    def deny(self) -> None:
        """Denied, expired, withdrawn, or the approval was revoked before it was handed out."""

    @transition(field="status", source=S.APPROVED.value, target=S.BUILDING.value)
    def start_build(self) -> None:
        """The build job starts."""

    @transition(field="status", source=S.BUILDING.value, target=S.DEPLOYING.value)
    def deploy(self) -> None:
        """Built, signed, assigned."""

    @transition(field="status", source=S.DEPLOYING.value, target=S.ACTIVE.value)
    def activate(self) -> None:
        """Every target settled, few enough badly."""

    @transition(
        field="status",
        source=[S.BUILDING.value, S.DEPLOYING.value, S.ROLLING_BACK.value],
        target=S.FAILED.value,
    )
    def fail(self) -> None:
        """The build is dead, too many targets failed, or the rollback failed."""

    @transition(
        field="status",
        source=[S.DEPLOYING.value, S.ACTIVE.value, S.FAILED.value],
        target=S.ROLLING_BACK.value,
    )
    def roll_back(self) -> None:
        """Asked for, revoked while deploying, or by itself after failing."""

    @transition(field="status", source=S.ROLLING_BACK.value, target=S.ROLLED_BACK.value)
    def confirm_rollback(self) -> None:
        """Every reachable target confirmed."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Its phases; one of everybody without a bake when it is not phased."""
        return phases_of(self.strategy)

    @property
    def phased(self) -> bool:
        """Does it go by phases?"""
        return bool(self.strategy.get("type") == "phased")

    @property
    def max_failures(self) -> int:
        """How many targets may fail or stay away."""
        return int(self.strategy.get("max_failures", 0))

    @property
    def auto_rollback(self) -> bool:
        """Does it go back by itself when it fails?"""
        return bool(self.strategy.get("auto_rollback", False))

    @property
    def ever_rolling_back(self) -> bool:
        """Did it ever begin to roll back? Then nobody is asked to run it again."""
        return self.rolling_back_at is not None


class TargetStatus(models.TextChoices):
    """How far one agent is with one deployment."""

    PENDING = "pending"
    ASSIGNED = "assigned"
    FETCHED = "fetched"
    VERIFIED = "verified"
    ACTIVATED = "activated"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    UNREACHABLE = "unreachable"


def in_words(counts: Mapping[str, int]) -> str:
    """How many targets are what, in words; empty for none."""
    return ", ".join(f"{counts[s.value]} {s.value.replace('_', ' ')}" for s in TargetStatus if counts.get(s.value))


class Target(TreeModel):
    """One agent of a deployment. The agent is named by a plain id: the row outlives it.

    `phase` is the rollout's phase (0 for `all_at_once`), fixed when it is asked for; `phase_started_at` when it began
    here, or when the rollback did. `sequence` is the deployment's, set when the bundle is assigned: a target without one
    was never told anything. `previous_*` is what the agent had last confirmed then. `rollback_at` is when a rollback was
    asked of this target. `settled_at` is set once there is nothing more to wait for. `report` holds `reason`, `tuning`,
    `log_tail`, and `failure`: why it failed, also after it went back.
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
                name="target_walk",  # used by selectors.desired
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
        """When its silence makes it unreachable; None while nothing is asked of it."""
        if self.phase_started_at is None:
            return None
        return self.phase_started_at + dt.timedelta(seconds=timeout_seconds)


class Confirmation(TreeModel):
    """What an agent last confirmed to run, by a report on what it was told; `deployment_id` None: stopped."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="confirmations")
    agent_id = models.UUIDField(unique=True, editable=False)
    deployment_id = models.UUIDField(null=True, editable=False)
    bundle_sha256 = models.CharField(max_length=64, blank=True, editable=False)
    sequence = models.BigIntegerField(null=True, editable=False)
    confirmed_at = models.DateTimeField(editable=False)

    def __str__(self) -> str:
        return f"{self.agent_id}: {self.deployment_id}"


class DeploymentEvent(TreeModel):
    """One move of a deployment: who, why, what set it off. `from_status` is empty for the first. Never changed."""

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
        """When it happened."""
        return self.created_at


class PhaseMark(models.TextChoices):
    """What can be told of a phase."""

    STARTED = "started"
    BAKING = "baking"
    PASSED = "passed"


class PhaseEvent(TreeModel):
    """A phase of a phased rollout began, began to bake, or passed: each once. Never changed.

    Apart from `DeploymentEvent`, whose rows are the moves of the status and nothing else.
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
