"""Rules of deployments: which build may start, the effect of a report, and the outcome of a rollback.

Pure: no database, no clock. The services act on them, and the model check explores all of their states (`tests/model`).
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from apps.agents.registry import AgentReport, Desired
from apps.core.errors import Conflict

PROGRESS = {"assigned": 0, "fetched": 1, "verified": 2}
"""Progress of an unsettled target. A report of earlier progress than already reported has no effect."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An approved deployment: its agents, and whether its build is queued."""

    id: uuid.UUID
    agents: Collection[uuid.UUID]
    queued: bool


def startable(waiting: Sequence[Waiting], held: Iterable[uuid.UUID]) -> list[uuid.UUID]:
    """The deployments of `waiting` (oldest approval first) whose build can be queued now.

    `held` are the agents that a deployment is building for, deploying to or rolling back on. An agent is also busy while a
    build for it is queued and while an older approval waits for it, so that approvals proceed in order.
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
class TargetState:
    """Present state of the target that a report is about.

    `rollback_requested`: the target was asked to roll back. `in_bake`: its deployment has begun a bake. `failed_bundle`: the bundle
    of its last report.
    """

    deployment_id: uuid.UUID
    status: str
    settled: bool
    rollback_requested: bool
    in_bake: bool
    failed_bundle: str | None = None


@dataclass(frozen=True, slots=True)
class ReportEffect:
    """Effect of a report on its target.

    `to` is the new status (None: unchanged), `settles` whether no further report is expected, and `confirms` whether the
    agent confirms its desired state.
    """

    to: str | None = None
    settles: bool = False
    confirms: bool = False


NOTHING = ReportEffect()


def effect_of(report: AgentReport, target: TargetState, wanted: Desired) -> ReportEffect:
    """The effect of a report on `target` while `wanted` is its agent's desired state.

    A repeated or late report has no effect. Raises Conflict `not_wanted` when the report does not match the desired state,
    and `already_settled` when it contradicts a confirmation (during a bake that is a failure instead).
    """
    if (
        report.status == "failed"
        and target.status == "failed"
        and target.settled
        and report.bundle_sha256 in (None, target.failed_bundle)
    ):
        return NOTHING
    if wanted.for_deployment_id != target.deployment_id:
        raise Conflict("The desired state of this agent has changed.", code="not_wanted")
    # true if the agent rolls back or stops this deployment
    leaving = wanted.deployment_id != target.deployment_id
    named = (report.bundle_sha256, report.sequence) == (wanted.bundle_sha256, wanted.sequence)
    match report.status:
        case "fetched" | "verified":
            _require(wanted.directive != "stop" and named)
            if leaving or target.status not in PROGRESS or PROGRESS[report.status] <= PROGRESS[target.status]:
                return NOTHING
            return ReportEffect(to=report.status)
        case "activated" | "rolled_back":
            _require(wanted.directive != "stop" and named)
            if report.status == "rolled_back" and wanted.directive != "rollback":
                raise Conflict("This target was not asked to roll back.", code="not_wanted")
            return _confirmed(target, leaving)
        case "stopped":
            if wanted.directive != "stop":
                raise Conflict("This target was not asked to stop.", code="not_wanted")
            return _confirmed(target, leaving)
        case _:
            _require(report.bundle_sha256 is None or named)
            return _failed(target, leaving)


def _require(named: bool) -> None:
    if not named:
        raise Conflict("The desired state of this agent is another bundle.", code="not_wanted")


def _confirmed(target: TargetState, leaving: bool) -> ReportEffect:
    if leaving and not target.rollback_requested:
        return ReportEffect(confirms=True)
    reached = "rolled_back" if leaving else "activated"
    if target.status == reached and target.settled:
        return ReportEffect(confirms=True)
    return ReportEffect(to=reached, settles=True, confirms=True)


def _failed(target: TargetState, leaving: bool) -> ReportEffect:
    if leaving and not target.rollback_requested:
        # the failed deployment is rolled back here; heartbeats show whether the previous one starts
        return NOTHING
    failing_bake = target.status == "activated" and target.in_bake and not leaving
    if target.settled and target.status != "unreachable" and not failing_bake:
        raise Conflict("This target is already settled.", code="already_settled")
    return ReportEffect(to="failed", settles=True)


class RollbackOutcome(StrEnum):
    """Outcome of a rollback so far."""

    WAIT = "wait"
    CONFIRM = "confirm"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class RollbackTarget:
    """A target that was asked to roll back."""

    status: str
    settled: bool
    removed: bool = False


def rollback_outcome(targets: Iterable[RollbackTarget]) -> RollbackOutcome:
    """The outcome of a rollback: FAIL once an enrolled target could not roll back, CONFIRM once no report is expected.

    Removed and unreachable agents do not block it.
    """
    rows = list(targets)
    if any(row.status == "failed" and row.settled and not row.removed for row in rows):
        return RollbackOutcome.FAIL
    return RollbackOutcome.CONFIRM if all(row.settled or row.removed for row in rows) else RollbackOutcome.WAIT
