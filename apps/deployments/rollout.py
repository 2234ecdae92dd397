"""Next step of a rollout, derived from its strategy and targets. Pure: no database, no clock."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

FULL = 100
BAD = ("failed", "unreachable")
"""Target statuses that count against `max_failures`."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a rollout: up to `percent` of all targets (cumulative), then a bake of `bake_seconds`."""

    percent: int
    bake_seconds: int

    @property
    def bake(self) -> dt.timedelta:
        return dt.timedelta(seconds=self.bake_seconds)


ALL_AT_ONCE = (Phase(FULL, 0),)


def phases_of(strategy: Mapping[str, Any]) -> tuple[Phase, ...]:
    """The phases of a stored strategy; `all_at_once` is a single phase of all targets without a bake."""
    if strategy.get("type") != "phased":
        return ALL_AT_ONCE
    return tuple(Phase(int(p["percent"]), int(p["bake_seconds"])) for p in strategy["phases"])


def upto(phases: Sequence[Phase], count: int) -> list[int]:
    """Cumulative number of targets per phase: its percentage of `count`, rounded up."""
    return [-(-count * phase.percent // FULL) for phase in phases]


def assign_phases(agent_ids: Iterable[uuid.UUID], phases: Sequence[Phase]) -> dict[uuid.UUID, int]:
    """Assign each agent to a phase: {agent id: phase}.

    Agents are ordered by id (longest enrolled first), so that the strategy and the set of targets, which an approval's
    digest covers, determine the result.
    """
    ordered = sorted(set(agent_ids))
    bounds = upto(phases, len(ordered))
    return {
        agent_id: next(number for number, bound in enumerate(bounds) if index < bound)
        for index, agent_id in enumerate(ordered)
    }


@dataclass(frozen=True, slots=True)
class Tally:
    """Number of targets of one phase with the same status and the same `settled`."""

    phase: int
    status: str
    settled: bool
    number: int = 1


class Step(StrEnum):
    """Next automatic step of a rollout."""

    WAIT = "wait"
    BAKE = "bake"
    ADVANCE = "advance"
    ACTIVATE = "activate"
    FAIL = "fail"


def next_step(
    phases: Sequence[Phase],
    present: int | None,
    bake_ends_at: dt.datetime | None,
    targets: Iterable[Tally],
    *,
    max_failures: int,
    now: dt.datetime,
    silent_count: int = 0,
) -> Step:
    """The next step of a deployment in `deploying`.

    `present` is its phase (None: no phase has begun), `bake_ends_at` is set while that phase bakes, and `silent_count` is
    the number of its activated targets without a recent heartbeat.
    FAIL as soon as more than `max_failures` targets failed or are unreachable. Otherwise WAIT until every target of the
    phases that have begun is settled; BAKE if the present phase has a bake that did not begin; WAIT until the bake is
    over and no target is silent; then ADVANCE to the next phase, or ACTIVATE after the last.
    """
    rows = list(targets)
    if sum(row.number for row in rows if row.status in BAD) > max_failures:
        return Step.FAIL
    if present is None:
        return Step.ADVANCE
    if any(not row.settled and row.number for row in rows if row.phase <= present):
        return Step.WAIT
    if phases[present].bake_seconds:
        if bake_ends_at is None:
            return Step.BAKE
        if now < bake_ends_at or silent_count:
            return Step.WAIT
    return Step.ADVANCE if present + 1 < len(phases) else Step.ACTIVATE


class PhaseState(StrEnum):
    """State of a phase.

    `waiting` for earlier phases, rolling out, baking, or `passed`. When the deployment ended, `stopped` if the phase had
    begun, else `untouched`.
    """

    WAITING = "waiting"
    DEPLOYING = "deploying"
    BAKING = "baking"
    PASSED = "passed"
    STOPPED = "stopped"
    UNTOUCHED = "untouched"


def phase_state(number: int, *, status: str, present: int | None, baking: bool, passed: bool) -> PhaseState:
    """The state of phase `number` of a deployment with this status, whose present or last phase is `present`."""
    if passed:
        return PhaseState.PASSED
    if status in ("pending_approval", "approved", "building"):
        return PhaseState.WAITING
    if present is None or number > present:
        return PhaseState.WAITING if status == "deploying" else PhaseState.UNTOUCHED
    if status == "deploying":
        return PhaseState.BAKING if baking else PhaseState.DEPLOYING
    return PhaseState.STOPPED
