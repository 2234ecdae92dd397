"""The tree and the people of these tests, made through the services."""

from __future__ import annotations

from typing import Any

from apps.access import services as access
from apps.access.models import User
from apps.access.principals import person_principal
from apps.access.roles import Role
from apps.core.actors import SYSTEM_ACTOR as SYSTEM
from apps.tenancy import services as tenancy
from apps.tenancy.models import Organization
from apps.tenancy.scope import Scope

__all__ = ["SYSTEM", "make_world_tree"]

PASSWORD = "correct horse battery staple"


def _person(name: str, organization: Organization, role: Role) -> tuple[User, str]:
    made = access.create_person_with_password(
        actor=SYSTEM, email=f"{name}@example.com", scope=Scope(organization), role=role, password=PASSWORD
    )
    token = access.create_token(actor=person_principal(made.user), name="test")
    return made.user, token.text.reveal()


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
