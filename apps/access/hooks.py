"""Hooks of this app for changes of the tree."""

from __future__ import annotations

from typing import Any

from apps.core.actors import ActorRef
from apps.core.db import lock_row
from apps.core.errors import Forbidden
from apps.tenancy import registry
from apps.tenancy.models import Organization

ORGANIZATIONS_PER_PERSON = 5


def _first_membership(*, actor: ActorRef, node: Any) -> None:
    from apps.access.models import User
    from apps.access.services.members import join_first_admin

    if actor.acts_for is None:
        return
    if not actor.is_person:
        raise Forbidden("An organization needs a person as its first admin.", code="person_required")
    user = lock_row(User.objects.filter(pk=actor.acts_for, is_active=True, is_superuser=False))
    if user is None:
        return
    if user.address_proved_at is None:
        raise Forbidden(
            "The address of this account is not confirmed, so it can have roles only in the organization that invited it.",
            code="address_not_proved",
        )
    # the count includes the new one; the user's row is locked, so two concurrent requests can't both be the fifth
    made = Organization.objects.alive().filter(created_by=user.pk).count()
    if made > ORGANIZATIONS_PER_PERSON:
        raise Forbidden(
            f"A person can create at most {ORGANIZATIONS_PER_PERSON} organizations.",
            code="quota_exceeded",
            extra={"used": made - 1, "limit": ORGANIZATIONS_PER_PERSON},
        )
    join_first_admin(user=user, organization=node)


def register() -> None:
    """Register the hooks of the tree.

    The creator of an organization becomes its org_admin (except platform staff) and can create at most five.
    """
    registry.on_created("organization", _first_membership)
