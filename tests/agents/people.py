"""The tree and the people of these tests, made through the services."""

from __future__ import annotations

from typing import Any

from apps.access import services as access
from apps.access.models import Membership, User
from apps.core.actors import SYSTEM_ACTOR as SYSTEM
from apps.tenancy import services as tenancy
from apps.tenancy.models import Organization

__all__ = ["SYSTEM", "make_world_tree"]

PASSWORD = "correct horse battery staple"


def _person(name: str, organization: Organization, role: str) -> tuple[User, str]:
    email = f"{name}@example.com"
    user = User.objects.create_user(email=email, password=PASSWORD)
    Membership.objects.create(organization=organization, user=user, email=email, role=role, status="active")
    _, text = access.create_personal_token(user=user, name="test")
    return user, text


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
        ("alice", organization, "org_admin"),
        ("bob", organization, "operator"),
        ("vera", organization, "viewer"),
        ("charlie", stranger, "org_admin"),
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
