"""References to actors, valid after the actor itself is deleted."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

PERSON = "person"


@dataclass(frozen=True, slots=True)
class ActorRef:
    """An actor: kind (`person`, `organization_key`, `agent`, `enrollment`, `system`), id and readable name.

    `made_by` is the person who made an organization key.
    """

    kind: str
    id: str | None
    name: str = ""
    made_by: uuid.UUID | None = None

    def __str__(self) -> str:
        return f"{self.kind}:{self.id or self.name}"

    @property
    def is_person(self) -> bool:
        return self.kind == PERSON

    @property
    def acts_for(self) -> uuid.UUID | None:
        """The person on whose behalf it acts: itself, or the maker of an organization key. None for hosts and the system."""
        if self.is_person:
            return uuid.UUID(self.id) if self.id else None
        return self.made_by


SYSTEM_ACTOR = ActorRef("system", None, "byteor")
