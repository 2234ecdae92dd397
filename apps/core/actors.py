"""Who did it: a reference that outlives the one it names."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ActorRef:
    """A doer by kind (`person`, `agent`, `enrollment`, `system`), id and readable name."""

    kind: str
    id: str | None
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.id or self.name}"


SYSTEM_ACTOR = ActorRef("system", None, "byteor")
