"""Registry through which the apps above signing handle objects that depend on a key."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Protocol

from apps.core.actors import ActorRef


class KeyDependents(Protocol):
    """Interface of an app that has documents signed."""

    def lock(self, organization_id: uuid.UUID) -> None:
        """Lock the rows that may depend on a key of the organization, before the key's own row changes (lock order)."""

    def revoked(self, *, actor: ActorRef, organization_id: uuid.UUID, kid: str, reason: str) -> dict[str, int]:
        """End what must not continue under `kid`, in the revocation's transaction. Returns counts for the audit event."""

    def preview_revocation(self, organization_id: uuid.UUID, kid: str) -> list[str]:
        """Return sentences that describe the effects of revoking `kid`. Changes nothing."""


OnKeysChanged = Callable[[uuid.UUID], None]

dependents: list[KeyDependents] = []
_changed: list[OnKeysChanged] = []


def register_dependents(app: KeyDependents) -> None:
    """Register an app whose objects depend on signing keys."""
    dependents.append(app)


def on_keys_changed(hook: OnKeysChanged) -> None:
    """Register `hook(organization_id)`, called in the transaction that publishes a new version of a key set."""
    _changed.append(hook)


def keys_changed(organization_id: uuid.UUID) -> None:
    for hook in _changed:
        hook(organization_id)
