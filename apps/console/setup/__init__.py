"""Making tenants and people from the command line."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from django.db import transaction

from apps.access.models import User
from apps.access.principals import person_principal
from apps.access.roles import PROJECT_ROLES, Role
from apps.access.services import create_person_with_password, create_token
from apps.core.actors import ActorRef
from apps.core.errors import BadRequest, NotFound
from apps.core.secrets import Secret
from apps.tenancy.models import Organization, Project
from apps.tenancy.scope import Scope
from apps.tenancy.services import create_organization

OPERATOR = ActorRef("system", None, "command line")


@dataclass(frozen=True, slots=True)
class NewAccount:
    """What a command shows once. `password` is None for a person who had an account before."""

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


@transaction.atomic
def bootstrap(*, organization: str, email: str, name: str = "", password: str | None = None) -> NewAccount:
    """A new tenant with its first org_admin."""
    made = create_organization(actor=OPERATOR, name=organization)
    return add_person(organization=made, email=email, role=Role.ORG_ADMIN, name=name, password=password)


@transaction.atomic
def add_person(
    *,
    organization: Organization,
    email: str,
    role: Role,
    project: Project | None = None,
    name: str = "",
    password: str | None = None,
) -> NewAccount:
    """A person with a role and a personal token. Raises Conflict `member_exists`, BadRequest on a role that is not for projects."""
    if project is not None and role not in PROJECT_ROLES:
        raise BadRequest("That role is for organizations only.")
    made = create_person_with_password(
        actor=OPERATOR, email=email, scope=Scope(organization, project), role=role, name=name, password=password
    )
    token = create_token(actor=person_principal(made.user, via="command"), name="first token")
    return NewAccount(organization, made.user, made.password, token.text)


def find_place(org_id: uuid.UUID, project_id: uuid.UUID | None) -> tuple[Organization, Project | None]:
    """The organization and project of these ids. Raises NotFound."""
    organization = Organization.objects.filter(pk=org_id, deleted_at__isnull=True).first()
    if organization is None:
        raise NotFound("There is no such organization.")
    if project_id is None:
        return organization, None
    project = Project.objects.filter(pk=project_id, organization=organization, deleted_at__isnull=True).first()
    if project is None:
        raise NotFound("There is no such project in that organization.")
    return organization, project
