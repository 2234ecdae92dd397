"""Keys and the signed sets that name them."""

from __future__ import annotations

from django.db import models
from django_fsm import transition

from apps.core.fsm import GuardedModel, GuardedQuerySet, StatusField
from apps.core.models import TreeModel
from apps.tenancy.models import Organization


class KeyStatus(models.TextChoices):
    """`active` signs, `retired` still verifies what it signed, `revoked` verifies nothing."""

    ACTIVE = "active"
    RETIRED = "retired"
    REVOKED = "revoked"


K = KeyStatus


class SigningKey(GuardedModel, TreeModel):
    """An Ed25519 key. `private_box` is encrypted under the key-encryption key named `wrapped_by` (`apps.signing.vault`).

    The moves, and there are no others: active → retired → revoked. An organization has one active key at a time, so a key
    stops being active only in favour of its successor. `not_after` is when it was retired; a revoked key's private part is
    gone, and `reason` says why.
    """

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="signing_keys")
    kid = models.CharField(max_length=40, unique=True, editable=False)
    public_key = models.BinaryField(max_length=32)
    private_box = models.BinaryField(editable=False)
    wrapped_by = models.CharField(max_length=64, editable=False)
    status = StatusField(choices=KeyStatus.choices, default=K.ACTIVE.value)
    not_before = models.DateTimeField(editable=False)
    not_after = models.DateTimeField(null=True, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)
    reason = models.CharField(max_length=1000, blank=True, default="", db_default="", editable=False)

    objects = GuardedQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(status__in=KeyStatus.values), name="signing_key_status_known"),
            models.UniqueConstraint(
                fields=["organization"], condition=models.Q(status="active"), name="signing_key_one_active"
            ),
        ]

    def __str__(self) -> str:
        return self.kid

    @transition(field="status", source=K.ACTIVE.value, target=K.RETIRED.value)
    def retire(self) -> None:
        """Its successor signs from now on."""

    @transition(field="status", source=K.RETIRED.value, target=K.REVOKED.value)
    def revoke(self) -> None:
        """Nobody shall believe it any more."""


class KeySetVersion(TreeModel):
    """One version of an organization's key set, as the signed envelope that agents accept. Never changed."""

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="key_sets")
    version = models.PositiveIntegerField()
    envelope = models.JSONField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["organization", "version"], name="key_set_version_once")]

    def __str__(self) -> str:
        return f"version {self.version}"
