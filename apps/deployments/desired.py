"""What one agent shall run, worked out from what it was ever assigned. Pure: no database, no clock."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from apps.agents.registry import Desired


@dataclass(frozen=True, slots=True)
class Assigned:
    """One bundle that was assigned to the agent, and what became of it.

    `rolling_back_at`: when its deployment last began to roll back (None: never); `rollback_at`: when that was asked of
    this very agent.
    """

    deployment_id: uuid.UUID
    sequence: int
    bundle_sha256: str
    deployment_status: str
    target_status: str
    rolling_back_at: dt.datetime | None = None
    rollback_at: dt.datetime | None = None

    @property
    def activated(self) -> bool:
        return self.target_status == "activated"

    @property
    def out(self) -> bool:
        """Is it out of the question: failed here, failed before it was activated here, or taken back?"""
        return (
            self.target_status == "failed"
            or self.rolling_back_at is not None
            or (self.deployment_status == "failed" and not self.activated)
        )


def without(walk: Iterable[Assigned], deployment_id: uuid.UUID, at: dt.datetime) -> Iterator[Assigned]:
    """`walk` as it would be if `deployment_id` had been taken back at `at`."""
    for item in walk:
        yield replace(item, rolling_back_at=at, rollback_at=at) if item.deployment_id == deployment_id else item


def desired_of(walk: Iterable[Assigned]) -> Desired:
    """What the agent of `walk` (all that it was ever assigned, highest sequence first) shall do.

    The newest assignment counts even if unconfirmed. Once the newest is out, only what this agent itself activated
    counts: going back never leads to something it did not run. Nothing counts: `stop`; nothing was ever assigned:
    `none`.
    The word is `rollback` when what is wanted is older than the newest assignment, else `activate`. It serves the
    deployment that was last taken back from this agent above what is wanted, else what is wanted itself (for `stop`
    the newest). Reads no further than it needs.
    """
    newest: Assigned | None = None
    undone: tuple[dt.datetime, Assigned] | None = None
    for item in walk:
        if newest is None:
            newest = item
        if not item.out and (item is newest or item.activated):
            return Desired(
                directive="activate" if item is newest else "rollback",
                deployment_id=item.deployment_id,
                for_deployment_id=undone[1].deployment_id if undone else item.deployment_id,
                bundle_sha256=item.bundle_sha256,
                sequence=item.sequence,
            )
        if item.rollback_at is not None and (undone is None or item.rollback_at > undone[0]):
            undone = (item.rollback_at, item)
    if newest is None:
        return Desired(directive="none")
    return Desired(directive="stop", for_deployment_id=(undone[1] if undone else newest).deployment_id)
