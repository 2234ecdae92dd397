"""What this room adds to the life of the tree."""

from __future__ import annotations

import uuid
from typing import Any

from apps.core.actors import ActorRef
from apps.tenancy import registry


def _first_membership(*, actor: ActorRef, node: Any) -> None:
    from apps.access.models import User
    from apps.access.services.members import join_first_admin

    if actor.kind != "person" or actor.id is None:
        return
    user = User.objects.filter(pk=uuid.UUID(actor.id), is_active=True, is_superuser=False).first()
    if user is not None:
        join_first_admin(user=user, organization=node)


def register() -> None:
    """Fill the registries below: whoever makes an organization becomes its org_admin (platform staff does not)."""
    registry.on_created("organization", _first_membership)
