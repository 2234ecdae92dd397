"""Authenticated callers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from apps.access.models import Membership, User
from apps.access.roles import Role, RoleRow
from apps.core.actors import PERSON, ActorRef
from apps.core.visibility import Visibility


@dataclass(slots=True)
class RoleCache:
    """The roles of a principal, once they are known."""

    rows: Sequence[RoleRow] | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller: `kind` is person, organization_key, agent, enrollment or system; `via` is session, token, key or
    system.

    What it does is done by `id` (`ref`), and is the responsibility of the person that `acts_for` names. A new principal is made
    for each request, and its roles are read at most once. `organization_id` is the organization that an agent belongs to.
    """

    kind: str
    id: uuid.UUID | None
    name: str
    credential_id: str | None = None
    via: str = "system"
    user: User | None = None
    made_by: uuid.UUID | None = None
    """The person who made an organization key."""
    organization_id: uuid.UUID | None = None
    role_cache: RoleCache = field(default_factory=RoleCache, compare=False, repr=False)

    @property
    def ref(self) -> ActorRef:
        """The reference to the caller in audit events."""
        return ActorRef(self.kind, str(self.id) if self.id else None, self.name, self.made_by)

    @property
    def is_person(self) -> bool:
        return self.kind == PERSON

    @property
    def acts_for(self) -> uuid.UUID | None:
        """The person on whose behalf it acts: itself, or the maker of an organization key. None for hosts and the system.

        It counts where two people must be independent of each other: self-approval, and changes that weaken a policy.
        """
        return self.id if self.is_person else self.made_by

    @property
    def is_superuser(self) -> bool:
        return self.user is not None and self.user.is_active and self.user.is_superuser

    @property
    def is_authenticated(self) -> bool:
        """Read by DRF on `request.user`."""
        return True

    @property
    def roles(self) -> Sequence[RoleRow]:
        """Its roles in organizations and projects that are not deleted. One query at the first use, for people only."""
        rows = self.role_cache.rows
        if rows is None:
            rows = self.role_cache.rows = _roles_of_user(self.id) if self.is_person and self.id is not None else ()
        return rows

    @property
    def visibility(self) -> Visibility:
        """What it may see: everything for platform staff, else what its roles give."""
        if self.is_superuser:
            return Visibility(everything=True)
        return Visibility(
            organizations=frozenset(organization for organization, _, _ in self.roles),
            whole_organizations=frozenset(organization for organization, at, _ in self.roles if at is None),
            administered=frozenset(organization for organization, _, role in self.roles if role == Role.ORG_ADMIN),
            projects=frozenset(at for _, at, _ in self.roles if at is not None),
        )

    def fresh(self) -> Principal:
        """Return the same caller, whose roles are read anew: for a check under a lock."""
        return replace(self, role_cache=RoleCache()) if self.is_person else self

    def __str__(self) -> str:
        return self.name


SYSTEM = Principal(kind="system", id=None, name="byteor")


def _roles_of_user(user_id: uuid.UUID) -> list[RoleRow]:
    rows = Membership.objects.active_of(user_id).order_by("pk")
    return list(rows.values_list("organization_id", "project_id", "role"))


def person_principal(user: User, *, via: str = "session", credential_id: str | None = None) -> Principal:
    """Return the principal of a signed-in user or of the owner of a personal token, with the roles that were read with it."""
    return Principal(
        kind=PERSON,
        id=user.pk,
        name=str(user),
        credential_id=credential_id,
        via=via,
        user=user,
        role_cache=RoleCache(user.known_roles),
    )
