"""Signing keys, and the signed key sets that name them."""

from __future__ import annotations

from django.db import models
from django_fsm import transition

from apps.core.fsm import GuardedModel, StatusField
from apps.core.models import TreeModel
from apps.core.visibility import GuardedScopedQuerySet
from apps.tenancy.models import InOrganization, Organization


class KeyStatus(models.TextChoices):
    """`active` signs, `retired` still verifies what it signed, `revoked` verifies nothing."""

    ACTIVE = "active"
    RETIRED = "retired"
    REVOKED = "revoked"


K = KeyStatus


class SigningKey(InOrganization, GuardedModel, TreeModel):
    """An Ed25519 key. `private_box` is encrypted under the key-encryption key `wrapped_by` (see `apps.signing.vault`).

    The only transitions: active → retired → revoked. An organization has one active key at a time, so a key is retired
    only by its successor. `not_after` is when it was retired. A revoked key's private part is deleted, and `reason`
    states why it was revoked.
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

    objects = GuardedScopedQuerySet.as_manager()

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
        """The key's successor signs from now on."""

    @transition(field="status", source=K.RETIRED.value, target=K.REVOKED.value)
    def revoke(self) -> None:
        """The key is compromised: nothing it signed verifies from now on."""


class KeySetVersion(TreeModel):
    """One version of an organization's key set: the signed envelope that agents accept. Immutable."""

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="key_sets")
    version = models.PositiveIntegerField()
    envelope = models.JSONField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["organization", "version"], name="key_set_version_once")]

    def __str__(self) -> str:
        return f"version {self.version}"
