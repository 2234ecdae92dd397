"""How a rollout goes on, worked out from its plan and its targets. Pure: no database, no clock of its own."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

FULL = 100
BAD = ("failed", "unreachable")
"""What counts against `max_failures`."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One step of a rollout: up to `percent` of the targets (all phases before included), then `bake_seconds` of watching."""

    percent: int
    bake_seconds: int

    @property
    def bake(self) -> dt.timedelta:
        return dt.timedelta(seconds=self.bake_seconds)


ALL_AT_ONCE = (Phase(FULL, 0),)


def phases_of(strategy: Mapping[str, Any]) -> tuple[Phase, ...]:
    """The phases of a strategy as it is stored; `all_at_once` is one of everybody, without a bake."""
    if strategy.get("type") != "phased":
        return ALL_AT_ONCE
    return tuple(Phase(int(p["percent"]), int(p["bake_seconds"])) for p in strategy["phases"])


def upto(phases: Sequence[Phase], count: int) -> list[int]:
    """How many of `count` targets belong to each phase and those before it: its percentage, rounded up."""
    return [-(-count * phase.percent // FULL) for phase in phases]


def assign_phases(agent_ids: Iterable[uuid.UUID], phases: Sequence[Phase]) -> dict[uuid.UUID, int]:
    """{agent: its phase}. Agents come in the order of their ids (the longest enrolled first), however they were named,
    so that the strategy and the set of targets, which an approval's digest covers, say it all."""
    ordered = sorted(set(agent_ids))
    bounds = upto(phases, len(ordered))
    return {
        agent_id: next(number for number, bound in enumerate(bounds) if index < bound)
        for index, agent_id in enumerate(ordered)
    }


@dataclass(frozen=True, slots=True)
class Tally:
    """`number` targets of one phase that are alike: same status, all settled or none."""

    phase: int
    status: str
    settled: bool
    number: int = 1


class Step(StrEnum):
    """What a rollout does next by itself."""

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
    unheard: int = 0,
) -> Step:
    """What a deployment that is `deploying` does now.

    `present` is the phase it is in (None: none has begun), `bake_ends_at` is set while that phase bakes, `unheard` how
    many of its activated targets gave no sign of life lately.
    FAIL the moment more than `max_failures` failed or are unreachable. Else WAIT until every target of the phases
    that have begun is settled; then BAKE, if the present phase has a bake that did not begin; WAIT until the bake is over and
    everybody was heard of; then ADVANCE to the next phase, or ACTIVATE after the last.
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
        if now < bake_ends_at or unheard:
            return Step.WAIT
    return Step.ADVANCE if present + 1 < len(phases) else Step.ACTIVATE


class PhaseState(StrEnum):
    """Where a phase is: `waiting` for those before it, rolling out, baking, `passed`, `stopped` in the middle of it by the
    end of the deployment, or `untouched` because that came first."""

    WAITING = "waiting"
    DEPLOYING = "deploying"
    BAKING = "baking"
    PASSED = "passed"
    STOPPED = "stopped"
    UNTOUCHED = "untouched"


def phase_state(number: int, *, status: str, present: int | None, baking: bool, passed: bool) -> PhaseState:
    """The state of phase `number` of a deployment with this status, whose present (or last) phase is `present`."""
    if passed:
        return PhaseState.PASSED
    if status in ("pending_approval", "approved", "building"):
        return PhaseState.WAITING
    if present is None or number > present:
        return PhaseState.WAITING if status == "deploying" else PhaseState.UNTOUCHED
    if status == "deploying":
        return PhaseState.BAKING if baking else PhaseState.DEPLOYING
    return PhaseState.STOPPED
