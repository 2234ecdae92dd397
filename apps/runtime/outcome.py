"""What becomes of a record that a plan runs over: the words of the interpreter and of what is behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Emission(NamedTuple):
    """A record that came out, and the egress lane it came out of (`egress` in a ring)."""

    lane: str
    record: bytes


class Refusal(NamedTuple):
    """Which stage or role refused a record, and why. The message holds no value of the record."""

    stage: str
    code: str
    message: str


@dataclass(slots=True)
class Outcome:
    """What became of one record.

    In a ring exactly one of `emitted` and `refused` is set. In a graph a record may have become several, so that any number
    came out, were refused, or were dropped from full lanes (`dropped`: a lane's name for each). `passed` are the stages, or
    the roles, that forwarded it or a copy of it. `shard` is the shard of a ring that it was in.
    """

    emissions: tuple[Emission, ...]
    refusals: tuple[Refusal, ...]
    passed: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    shard: int = 0

    @property
    def emitted(self) -> bytes | None:
        """The record that came out, the first if there are several, None if there is none."""
        return self.emissions[0].record if self.emissions else None

    @property
    def refused(self) -> Refusal | None:
        """The refusal, the first if there are several, None if there is none."""
        return self.refusals[0] if self.refusals else None


@dataclass(slots=True)
class Tally:
    """What a stage, a role or a lane has done: `received` is `forwarded` plus `refused`; a lane refuses what it drops."""

    forwarded: int = 0
    refused: int = 0

    def as_dict(self) -> dict[str, int]:
        """`{received, forwarded, refused}`."""
        return {"received": self.forwarded + self.refused, "forwarded": self.forwarded, "refused": self.refused}
