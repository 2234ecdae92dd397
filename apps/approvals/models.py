"""Approvals, the decisions on them, and what they went through."""

from __future__ import annotations

from typing import Any

from django.db import models
from django_fsm import transition

from apps.access.principals import Principal
from apps.access.selectors import environments_visible_to
from apps.core import clock
from apps.core.fsm import GuardedModel, GuardedQuerySet, StatusField
from apps.core.models import TreeModel
from apps.tenancy.models import Environment


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
    """What is asked for."""

    DEPLOY = "deploy"
    REPLAY_EXECUTE = "replay_execute"


class ApprovalQuerySet(GuardedQuerySet):
    """Approvals."""

    def visible_to(self, principal: Principal) -> models.QuerySet[Any]:
        """Those in environments that the caller may view."""
        return self.filter(environment__in=environments_visible_to(principal).values("pk"))


class Approval(GuardedModel, TreeModel):
    """One request for agreement.

    Legal moves: pending → approved | denied | expired | revoked; approved → revoked. `policy` is a copy of the policy in
    force when it was asked; `base` maps each target agent to what it stood on; base and `shown_digest` are frozen when it
    is decided. Two clocks: decide by `expires_at`, build by `credential_expires_at`.
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

    objects = ApprovalQuerySet.as_manager()

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
            # used by the expiry sweep
            models.Index(fields=["expires_at"], condition=models.Q(status="pending"), name="approval_pending"),
            models.Index(
                fields=["credential_expires_at"],
                condition=models.Q(status="approved", credential_expiry_told=False),
                name="approval_credential",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.action} asked by {self.requested_by_name}"

    @property
    def subject_id(self) -> Any:
        """The id of what it is about."""
        return self.deployment_id or self.replay_id

    @property
    def subject(self) -> str:
        """`deployment:<id>` or `replay:<id>`, as credentials name it."""
        return f"deployment:{self.deployment_id}" if self.deployment_id else f"replay:{self.replay_id}"

    @transition(field="status", source=[S.PENDING.value], target=S.APPROVED.value)
    def approve(self) -> None:
        """The last required reviewer approved, or the policy needs nobody."""

    @transition(field="status", source=[S.PENDING.value], target=S.DENIED.value)
    def deny(self) -> None:
        """A reviewer denied."""

    @transition(field="status", source=[S.PENDING.value], target=S.EXPIRED.value)
    def expire(self) -> None:
        """The window passed."""

    @transition(field="status", source=[S.PENDING.value, S.APPROVED.value], target=S.REVOKED.value)
    def revoke(self) -> None:
        """Withdrawn, or the grant taken back."""


class Decision(TreeModel):
    """One person's word on what the digest stands for. Never changed."""

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
    """A state the approval came into: from, to, who, why, when."""

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
    """Who made an environment's policy weaker, and how. For 24 hours they can neither request nor decide under it."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="policy_weakenings")
    user_id = models.UUIDField()
    at = models.DateTimeField(default=clock.now)
    details = models.JSONField(default=dict)

    def __str__(self) -> str:
        return f"{self.user_id} at {self.at}"
