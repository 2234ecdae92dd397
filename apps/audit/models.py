"""Audit events. They refer to objects by plain ids and copied names, because they outlive them."""

from __future__ import annotations

import uuid

from django.db import models

from apps.core import clock
from apps.core.ids import new_id
from apps.core.visibility import ScopedModel, ScopedQuerySet, Viewer


class Outcome(models.TextChoices):
    """Result of an authorization decision or of an event."""

    ALLOWED = "allowed"
    DENIED = "denied"


class ChainHead(models.Model):
    """The end of one chain: the number of events, the last hash, and a MAC under a key that is not in the database.

    `mac_key` is the id of the key-encryption key from which the MAC's key is derived. It is empty for heads written
    before the column existed.
    """

    chain = models.CharField(primary_key=True, max_length=64)
    count = models.PositiveBigIntegerField(default=0)
    hash = models.CharField(max_length=64)
    mac = models.CharField(max_length=64)
    mac_key = models.CharField(max_length=64, default="", db_default="")


class AuditEvent(ScopedModel):
    """One audit event. `hash` is the SHA-256 of the previous hash and this event's RFC 8785 JSON."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    created_at = models.DateTimeField(default=clock.now, editable=False)
    chain = models.CharField(max_length=64)
    seq = models.PositiveBigIntegerField()
    organization_id = models.UUIDField(null=True)
    outcome = models.CharField(max_length=16, choices=Outcome)
    actor = models.CharField(max_length=200)
    actor_name = models.CharField(max_length=200, blank=True)
    action = models.CharField(max_length=64)
    target = models.CharField(max_length=200, blank=True)
    resource_scope = models.JSONField(default=dict)
    request_id = models.CharField(max_length=128, blank=True)
    ip = models.CharField(max_length=64, blank=True)
    credential_id = models.CharField(max_length=64, blank=True)
    details = models.JSONField(default=dict)
    previous_hash = models.CharField(max_length=64)
    hash = models.CharField(max_length=64)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["chain", "seq"], name="audit_chain_seq"),
            models.CheckConstraint(condition=models.Q(outcome__in=Outcome.values), name="audit_outcome_known"),
        ]
        indexes = [
            # used by the organization's list (keyset on id)
            models.Index(fields=["organization_id", "-id"], name="audit_by_organization"),
            # used by the history of one object
            models.Index(fields=["target", "-id"], name="audit_by_target"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.target}"

    @classmethod
    def visible_where(cls, viewer: Viewer) -> models.Q:
        """The events of organizations that the viewer administers; all of them for platform staff."""
        sight = viewer.visibility
        return models.Q() if sight.everything else models.Q(organization_id__in=sight.administered)


SYSTEM_CHAIN = "system"


def chain_of(organization_id: uuid.UUID | None) -> str:
    """Return the name of the organization's chain, or of the system chain for None."""
    return str(organization_id) if organization_id else SYSTEM_CHAIN
