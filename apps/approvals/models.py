"""Approvals, decisions, and their events."""

from __future__ import annotations

from typing import Any

from django.db import models
from django_fsm import transition

from apps.core import clock
from apps.core.fsm import GuardedModel, StatusField
from apps.core.models import TreeModel
from apps.core.visibility import GuardedScopedQuerySet
from apps.tenancy.models import Environment, InEnvironment


class ApprovalStatus(models.TextChoices):
    """`denied`, `expired` and `revoked` are final."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    REVOKED = "revoked"


S = ApprovalStatus
FINAL = (S.DENIED.value, S.EXPIRED.value, S.REVOKED.value)


class Action(models.TextChoices):
    """What an approval is requested for."""

    DEPLOY = "deploy"
    REPLAY_EXECUTE = "replay_execute"


class Approval(InEnvironment, GuardedModel, TreeModel):
    """A request for approval.

    Transitions: pending → approved | denied | expired | revoked; approved → revoked. `policy` is a copy of the policy
    at the request. `base` maps each target agent to its deployment at the time; base and `shown_digest` are fixed at
    the decision. The decision is due by `expires_at`, the build by `credential_expires_at`.
    """

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="approvals")
    action = models.CharField(max_length=32, choices=Action)
    deployment_id = models.UUIDField(null=True)
    replay_id = models.UUIDField(null=True)
    status = StatusField(default=S.PENDING.value, choices=S.choices)
    requested_by = models.UUIDField(null=True)
    requested_by_name = models.CharField(max_length=200)
    reason = models.CharField(max_length=2000, blank=True)
    policy = models.JSONField()
    required_approvals = models.PositiveSmallIntegerField()
    expires_at = models.DateTimeField()
    spec_hash = models.CharField(max_length=80)
    config_hash = models.CharField(max_length=80)
    capabilities = models.JSONField(default=list)
    strategy = models.JSONField(default=dict)
    target_agent_ids = models.JSONField(default=list)
    base = models.JSONField(default=dict)
    shown_digest = models.CharField(max_length=80)
    decided_at = models.DateTimeField(null=True)
    credential = models.TextField(blank=True, editable=False)
    credential_kid = models.CharField(max_length=40, blank=True)
    credential_expires_at = models.DateTimeField(null=True)
    credential_expiry_told = models.BooleanField(default=False, editable=False)

    objects = GuardedScopedQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(status__in=S.values), name="approval_status_known"),
            models.CheckConstraint(
                condition=models.Q(deployment_id__isnull=False) | models.Q(replay_id__isnull=False),
                name="approval_has_subject",
            ),
        ]
        indexes = [
            models.Index(fields=["environment", "-id"], name="approval_by_environment"),
            # used by the expiry job
            models.Index(fields=["expires_at"], condition=models.Q(status="pending"), name="approval_pending"),
            models.Index(
                fields=["credential_expires_at"],
                condition=models.Q(status="approved", credential_expiry_told=False),
                name="approval_credential",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.action} requested by {self.requested_by_name}"

    @property
    def subject_id(self) -> Any:
        """Id of the object that needs approval."""
        return self.deployment_id or self.replay_id

    @property
    def subject(self) -> str:
        """`deployment:<id>` or `replay:<id>`, as credentials name it."""
        return f"deployment:{self.deployment_id}" if self.deployment_id else f"replay:{self.replay_id}"

    @transition(field="status", source=[S.PENDING.value], target=S.APPROVED.value)
    def approve(self) -> None:
        """The last required reviewer approved, or the policy requires none."""

    @transition(field="status", source=[S.PENDING.value], target=S.DENIED.value)
    def deny(self) -> None:
        """A reviewer denied."""

    @transition(field="status", source=[S.PENDING.value], target=S.EXPIRED.value)
    def expire(self) -> None:
        """The time to decide has passed."""

    @transition(field="status", source=[S.PENDING.value, S.APPROVED.value], target=S.REVOKED.value)
    def revoke(self) -> None:
        """Withdrawn by the requester, or revoked after approval."""


class Decision(TreeModel):
    """A reviewer's vote on a digest. Immutable."""

    approval = models.ForeignKey(Approval, on_delete=models.CASCADE, related_name="decisions")
    reviewer_id = models.UUIDField()
    reviewer_name = models.CharField(max_length=200)
    decision = models.CharField(max_length=8, choices=[("approve", "approve"), ("deny", "deny")])
    comment = models.CharField(max_length=2000, blank=True)
    digest = models.CharField(max_length=80)
    decided_at = models.DateTimeField(default=clock.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["approval", "reviewer_id", "digest"], name="decision_once_per_digest")
        ]

    def __str__(self) -> str:
        return f"{self.reviewer_name}: {self.decision}"


class ApprovalEvent(TreeModel):
    """A status change of an approval: from, to, by whom, why, when."""

    approval = models.ForeignKey(Approval, on_delete=models.CASCADE, related_name="events")
    from_status = models.CharField(max_length=16, blank=True)
    to_status = models.CharField(max_length=16)
    actor = models.CharField(max_length=200)
    actor_name = models.CharField(max_length=200, blank=True)
    trigger = models.CharField(max_length=64)
    reason = models.CharField(max_length=2000, blank=True)
    at = models.DateTimeField(default=clock.now)

    def __str__(self) -> str:
        return f"{self.from_status} → {self.to_status}"


class PolicyWeakening(TreeModel):
    """A change that weakened an environment's policy. For 24 hours its author can neither request nor decide there."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="policy_weakenings")
    user_id = models.UUIDField()
    at = models.DateTimeField(default=clock.now)
    details = models.JSONField(default=dict)

    def __str__(self) -> str:
        return f"{self.user_id} at {self.at}"
