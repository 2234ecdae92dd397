"""The way up: what hangs on a key is known by rooms above."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Protocol

from apps.core.actors import ActorRef


class KeyDependents(Protocol):
    """What a room that has things signed promises about them."""

    def lock(self, organization_id: uuid.UUID) -> None:
        """Lock whatever may hang on a key of the organization, before the key's own row changes (the house's lock order)."""

    def revoked(self, *, actor: ActorRef, organization_id: uuid.UUID, kid: str, reason: str) -> dict[str, int]:
        """End what must not go on under `kid`, in the revocation's transaction. Answers what was done, counted, for the record."""

    def foresee(self, organization_id: uuid.UUID, kid: str) -> list[str]:
        """What revoking `kid` would do, in sentences. Reads only."""


OnKeysChanged = Callable[[uuid.UUID], None]

_dependents: list[KeyDependents] = []
_changed: list[OnKeysChanged] = []


def register_dependents(dependents: KeyDependents) -> None:
    """Let `dependents` answer for what hangs on a key."""
    _dependents.append(dependents)


def on_keys_changed(hook: OnKeysChanged) -> None:
    """Run `hook(organization_id)` in the transaction that makes a new version of a key set: whoever follows it is woken."""
    _changed.append(hook)


def dependents() -> list[KeyDependents]:
    return _dependents


def keys_changed(organization_id: uuid.UUID) -> None:
    for hook in _changed:
        hook(organization_id)
