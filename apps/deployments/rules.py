"""Rules of deployments that only look: who may build next, what a report means, how a rollback ends. Pure: no database, no
clock. The services act on them, and the model check walks every state of them (`tests/model`).
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from apps.agents.registry import AgentReport, Desired
from apps.core.errors import Conflict

PROGRESS = {"assigned": 0, "fetched": 1, "verified": 2}
"""How far an unsettled target is; a report of less than it said before changes nothing."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An approved deployment: its agents, and whether its build is on its way already."""

    id: uuid.UUID
    agents: Collection[uuid.UUID]
    queued: bool


def startable(waiting: Sequence[Waiting], held: Iterable[uuid.UUID]) -> list[uuid.UUID]:
    """Those of `waiting` (oldest approval first) whose build can be queued now, `held` being the agents that some deployment
    builds for, deploys to or rolls back on.

    An agent is taken, too, while a build for it is queued, and while an older approval waits for it: a later one does not
    overtake.
    """
    taken = set(held)
    for item in waiting:
        if item.queued:
            taken.update(item.agents)
    chosen = []
    for item in waiting:
        if item.queued:
            continue
        if taken.isdisjoint(item.agents):
            chosen.append(item.id)
        taken.update(item.agents)
    return chosen


@dataclass(frozen=True, slots=True)
class ReportedOn:
    """The target that a report is about, as it is now. `asked_back`: a rollback was asked of it; `in_bake`: its deployment
    has a phase that bakes, or baked; `failed_bundle`: what its last report named."""

    deployment_id: uuid.UUID
    status: str
    settled: bool
    asked_back: bool
    in_bake: bool
    failed_bundle: str | None = None


@dataclass(frozen=True, slots=True)
class Meaning:
    """What follows from a report: `to` is the target's new status (None: it stays), `settles` whether that is the end of it,
    `confirms` whether the agent now runs (or stopped) what is wanted of it."""

    to: str | None = None
    settles: bool = False
    confirms: bool = False


NOTHING = Meaning()


def meaning_of(report: AgentReport, target: ReportedOn, wanted: Desired) -> Meaning:
    """What a report on `target` means while `wanted` is what its agent is told.

    A repeat, or what comes after a later one, means nothing. Raises Conflict `not_wanted` when this is not (or no longer)
    what the agent is told to do, `already_settled` when it takes back what it had confirmed (in a bake that is a failure).
    """
    if (
        report.status == "failed"
        and target.status == "failed"
        and target.settled
        and report.bundle_sha256 in (None, target.failed_bundle)
    ):
        return NOTHING
    if wanted.for_deployment_id != target.deployment_id:
        raise Conflict("This is no longer wanted of this agent.", code="not_wanted")
    # does the agent leave this deployment, rather than reach it?
    leaving = wanted.deployment_id != target.deployment_id
    named = (report.bundle_sha256, report.sequence) == (wanted.bundle_sha256, wanted.sequence)
    match report.status:
        case "fetched" | "verified":
            _require(wanted.directive != "stop" and named)
            if leaving or target.status not in PROGRESS or PROGRESS[report.status] <= PROGRESS[target.status]:
                return NOTHING
            return Meaning(to=report.status)
        case "activated" | "rolled_back":
            _require(wanted.directive != "stop" and named)
            if report.status == "rolled_back" and wanted.directive != "rollback":
                raise Conflict("It was not told to go back.", code="not_wanted")
            return _confirmed(target, leaving)
        case "stopped":
            if wanted.directive != "stop":
                raise Conflict("It was not told to stop.", code="not_wanted")
            return _confirmed(target, leaving)
        case _:
            _require(report.bundle_sha256 is None or named)
            return _failed(target, leaving)


def _require(named: bool) -> None:
    if not named:
        raise Conflict("Another bundle is wanted of this agent.", code="not_wanted")


def _confirmed(target: ReportedOn, leaving: bool) -> Meaning:
    if leaving and not target.asked_back:
        return Meaning(confirms=True)
    reached = "rolled_back" if leaving else "activated"
    if target.status == reached and target.settled:
        return Meaning(confirms=True)
    return Meaning(to=reached, settles=True, confirms=True)


def _failed(target: ReportedOn, leaving: bool) -> Meaning:
    if leaving and not target.asked_back:
        # it left a failed deployment for good: whether the older one still starts there is for its heartbeats to say
        return NOTHING
    failing_bake = target.status == "activated" and target.in_bake and not leaving
    if target.settled and target.status != "unreachable" and not failing_bake:
        raise Conflict("This target is settled already.", code="already_settled")
    return Meaning(to="failed", settles=True)


class Undoing(StrEnum):
    """How a rollback goes on."""

    WAIT = "wait"
    CONFIRM = "confirm"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Undone:
    """A target that a rollback was asked of."""

    status: str
    settled: bool
    gone: bool = False


def undoing(targets: Iterable[Undone]) -> Undoing:
    """FAIL as soon as a target that is still there could not go back; CONFIRM once nobody is waited for. Agents that are
    gone, or stayed silent, hold nothing up."""
    rows = list(targets)
    if any(row.status == "failed" and row.settled and not row.gone for row in rows):
        return Undoing.FAIL
    return Undoing.CONFIRM if all(row.settled or row.gone for row in rows) else Undoing.WAIT
