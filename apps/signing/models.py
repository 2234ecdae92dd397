"""Keys and the signed sets that name them."""

from __future__ import annotations

from django.db import models

from apps.core.models import TreeModel
from apps.tenancy.models import Organization


class KeyStatus(models.TextChoices):
    """`retired` still verifies what it signed; `revoked` verifies nothing."""

    ACTIVE = "active"
    RETIRED = "retired"
    REVOKED = "revoked"


class SigningKey(TreeModel):
    """An Ed25519 key. `private_box` is encrypted under the key-encryption key named `wrapped_by` (`apps.signing.vault`)."""

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="signing_keys")
    kid = models.CharField(max_length=40, unique=True)
    public_key = models.BinaryField(max_length=32)
    private_box = models.BinaryField(editable=False)
    wrapped_by = models.CharField(max_length=64)
    status = models.CharField(max_length=16, choices=KeyStatus, default=KeyStatus.ACTIVE)
    not_before = models.DateTimeField()
    not_after = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(status__in=KeyStatus.values), name="signing_key_status_known"),
            models.UniqueConstraint(
                fields=["organization"], condition=models.Q(status="active"), name="signing_key_one_active"
            ),
        ]

    def __str__(self) -> str:
        return self.kid


class KeySetVersion(TreeModel):
    """One version of an organization's key set, as the signed envelope that agents accept."""

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="key_sets")
    version = models.PositiveIntegerField()
    envelope = models.JSONField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["organization", "version"], name="key_set_version_once")]

    def __str__(self) -> str:
        return f"version {self.version}"
