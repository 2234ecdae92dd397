"""The tree and the people of these tests, made through the services."""

from __future__ import annotations

from typing import Any

from apps.access import services as access
from apps.access.models import Membership, MemberStatus, User
from apps.access.principals import person_principal
from apps.access.roles import Role
from apps.core.actors import SYSTEM_ACTOR as SYSTEM
from apps.tenancy import services as tenancy
from apps.tenancy.models import Organization

__all__ = ["SYSTEM", "make_world_tree"]


def _person(name: str, organization: Organization, role: Role) -> tuple[User, str]:
    user = User.objects.create_user(f"{name}@example.com", None)
    Membership.objects.create(
        organization=organization, user=user, email=user.email, role=role, status=MemberStatus.ACTIVE
    )
    return user, access.create_token(actor=person_principal(user), name="test").text.reveal()


def make_world_tree() -> dict[str, Any]:
    """What `World` is built of."""
    organization = tenancy.create_organization(actor=SYSTEM, name="Acme")
    project = tenancy.create_project(actor=SYSTEM, organization=organization, name="Shop")
    environment, other = (
        tenancy.create_environment(actor=SYSTEM, project=project, name=posture, posture=posture)
        for posture in ("dev", "staging")
    )
    stranger = tenancy.create_organization(actor=SYSTEM, name="Elsewhere")
    theirs = tenancy.create_project(actor=SYSTEM, organization=stranger, name="Shop")
    foreign = tenancy.create_environment(actor=SYSTEM, project=theirs, name="dev", posture="dev")
    roles = (
        ("alice", organization, Role.ORG_ADMIN),
        ("bob", organization, Role.OPERATOR),
        ("vera", organization, Role.VIEWER),
        ("charlie", stranger, Role.ORG_ADMIN),
    )
    made = {name: _person(name, where, role) for name, where, role in roles}
    return {
        "organization": organization,
        "environment": environment,
        "other": other,
        "foreign": foreign,
        "people": {name: user for name, (user, _) in made.items()},
        "pats": {name: text for name, (_, text) in made.items()},
    }
