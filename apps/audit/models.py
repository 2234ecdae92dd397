"""Audit rows. They name everything by plain ids and copied names, because they outlive it."""

from __future__ import annotations

import uuid

from django.db import models

from apps.core import clock
from apps.core.ids import new_id


class Outcome(models.TextChoices):
    """How an authorization decision or an event came out."""

    ALLOWED = "allowed"
    DENIED = "denied"


class ChainHead(models.Model):
    """The end of one chain: how many events, the last hash, and a MAC under a key that the database does not hold.

    `mac_key` is the id of the key-encryption key that the MAC's key derives from; empty where it was not noted yet.
    """

    chain = models.CharField(primary_key=True, max_length=64)
    count = models.PositiveBigIntegerField(default=0)
    hash = models.CharField(max_length=64)
    mac = models.CharField(max_length=64)
    mac_key = models.CharField(max_length=64, default="", db_default="")


class AuditEvent(models.Model):
    """One thing that happened. `hash` = SHA-256 of the previous hash and this event's RFC 8785 JSON."""

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

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["chain", "seq"], name="audit_chain_seq"),
            models.CheckConstraint(condition=models.Q(outcome__in=Outcome.values), name="audit_outcome_known"),
        ]
        indexes = [
            # used by the organization's list (keyset on id)
            models.Index(fields=["organization_id", "-id"], name="audit_by_organization"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.target}"


SYSTEM_CHAIN = "system"


def chain_of(organization_id: uuid.UUID | None) -> str:
    """The chain that events of this organization go to; those of none go to the system chain."""
    return str(organization_id) if organization_id else SYSTEM_CHAIN
