"""Creation of organizations and users from the command line."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from django.db import transaction

from apps.access.models import User
from apps.access.principals import person_principal
from apps.access.roles import PROJECT_ROLES, Role
from apps.access.services import create_person_with_password, create_token, first_password
from apps.access.services.accounts import FirstPassword
from apps.core.actors import ActorRef
from apps.core.errors import BadRequest, NotFound
from apps.core.secrets import Secret
from apps.tenancy.models import Organization, Project
from apps.tenancy.scope import Scope
from apps.tenancy.services import create_organization

OPERATOR = ActorRef("system", None, "command line")


@dataclass(frozen=True, slots=True)
class NewAccount:
    """Credentials that a command prints once. `password` is None for a user whose account already existed."""

    organization: Organization
    user: User
    password: Secret | None
    token: Secret

    def as_dict(self) -> dict[str, str | None]:
        return {
            "org_id": str(self.organization.pk),
            "user_id": str(self.user.pk),
            "email": self.user.email,
            "password": self.password.reveal() if self.password else None,
            "token": self.token.reveal(),
        }


def bootstrap(*, organization: str, email: str, name: str = "", password: str | None = None) -> NewAccount:
    """Create an organization with its first org_admin."""
    first = first_password(password)
    with transaction.atomic():
        made = create_organization(actor=OPERATOR, name=organization)
        return _add(made, None, email, Role.ORG_ADMIN, name, first)


def add_person(
    *,
    organization: Organization,
    email: str,
    role: Role,
    project: Project | None = None,
    name: str = "",
    password: str | None = None,
) -> NewAccount:
    """Create a user with a role and a personal token.

    Raises Conflict `member_exists`, and BadRequest for a project and a role that is for organizations only.
    """
    if project is not None and role not in PROJECT_ROLES:
        raise BadRequest("That role is for organizations only.")
    first = first_password(password)
    with transaction.atomic():
        return _add(organization, project, email, role, name, first)


def _add(
    organization: Organization, project: Project | None, email: str, role: Role, name: str, first: FirstPassword
) -> NewAccount:
    made = create_person_with_password(
        actor=OPERATOR, email=email, scope=Scope(organization, project), role=role, name=name, password=first
    )
    token = create_token(actor=person_principal(made.user, via="command"), name="first token")
    return NewAccount(organization, made.user, made.password, token.text)


def find_place(org_id: uuid.UUID, project_id: uuid.UUID | None) -> tuple[Organization, Project | None]:
    """The organization and project of these ids. Raises NotFound."""
    organization = Organization.objects.filter(pk=org_id, deleted_at__isnull=True).first()
    if organization is None:
        raise NotFound("The organization does not exist.")
    if project_id is None:
        return organization, None
    project = Project.objects.filter(pk=project_id, organization=organization, deleted_at__isnull=True).first()
    if project is None:
        raise NotFound("The project does not exist in that organization.")
    return organization, project
