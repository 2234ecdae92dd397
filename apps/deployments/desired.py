"""Desired state of one agent, derived from its assignment history. Pure: no database, no clock."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from apps.agents.registry import Desired


@dataclass(frozen=True, slots=True)
class Assigned:
    """A bundle that was assigned to the agent, and its outcome.

    `rolling_back_at` is when its deployment last began to roll back, None for never. `rollback_at` is when this agent was
    asked to roll back.
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
    def ruled_out(self) -> bool:
        """True if the agent must not run it: it failed here, failed before it was activated here, or was rolled back."""
        return (
            self.target_status == "failed"
            or self.rolling_back_at is not None
            or (self.deployment_status == "failed" and not self.activated)
        )


def without(walk: Iterable[Assigned], deployment_id: uuid.UUID, at: dt.datetime) -> Iterator[Assigned]:
    """`assignment_history` as if `deployment_id` had been rolled back at `at`."""
    for item in walk:
        yield replace(item, rolling_back_at=at, rollback_at=at) if item.deployment_id == deployment_id else item


def desired_of(walk: Iterable[Assigned]) -> Desired:
    """Derive an agent's desired state from its `assignment_history` (every assignment, highest sequence first).

    The newest assignment is desired even if unconfirmed. If it is ruled out (`Assigned.ruled_out`), the newest assignment that
    this agent activated is desired: a rollback never leads to a bundle that the agent did not run. Without one, the
    action is `stop`; without any assignment, `none`.
    The action is `rollback` when the desired bundle is older than the newest assignment, else `activate`. It is served for
    the deployment that was last rolled back on this agent and is newer than the desired one, else for the desired one
    itself (for `stop`, the newest). Iterates no further than needed.
    """
    newest: Assigned | None = None
    undone: tuple[dt.datetime, Assigned] | None = None
    for item in walk:
        if newest is None:
            newest = item
        if not item.ruled_out and (item is newest or item.activated):
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
