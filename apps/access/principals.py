"""Who is calling."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from apps.access.models import User
from apps.core.actors import ActorRef


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller: `kind` is person, agent, enrollment or system; `via` session, token, key or system."""

    kind: str
    id: uuid.UUID | None
    name: str
    credential_id: str | None = None
    via: str = "system"
    user: User | None = None

    @property
    def ref(self) -> ActorRef:
        """The caller as audit and events name it."""
        return ActorRef(self.kind, str(self.id) if self.id else None, self.name)

    @property
    def is_person(self) -> bool:
        return self.kind == "person"

    @property
    def is_superuser(self) -> bool:
        return self.user is not None and self.user.is_active and self.user.is_superuser

    @property
    def is_authenticated(self) -> bool:
        """What DRF asks of `request.user`."""
        return True

    def __str__(self) -> str:
        return self.name


SYSTEM = Principal(kind="system", id=None, name="byteor")


def person_principal(user: User, *, via: str = "session", credential_id: str | None = None) -> Principal:
    """The principal of a person who is signed in or sent a personal token."""
    return Principal(kind="person", id=user.pk, name=str(user), credential_id=credential_id, via=via, user=user)
