"""The rules of deployments over plain values: which build starts, what a report does, how a rollback ends, what a phase shows."""

from __future__ import annotations

import datetime as dt
import itertools
import uuid
from typing import Any

import pytest

from apps.agents.registry import AgentReport, Desired
from apps.core.errors import Conflict
from apps.deployments.desired import Assigned, desired_of, without
from apps.deployments.rollout import Phase, PhaseState, Step, Tally, next_step, phase_state
from apps.deployments.rules import (
    NOTHING,
    ReportEffect,
    RollbackOutcome,
    RollbackTarget,
    TargetState,
    Waiting,
    effect_of,
    rollback_outcome,
    startable,
)

HERE, BEFORE, THIRD = (uuid.UUID(int=n) for n in (1, 2, 3))
A, B, C = (uuid.UUID(int=n) for n in (10, 11, 12))


# --- which build starts ---


@pytest.mark.parametrize(
    ("waiting", "held", "expected"),
    [
        ([], [A], []),
        ([(1, [A], False)], [], [1]),
        ([(1, [A], False)], [A], []),
        ([(1, [A], False)], [B], [1]),
        ([(1, [A], False), (2, [A], False)], [], [1]),
        ([(1, [A], False), (2, [B], False)], [], [1, 2]),
        ([(1, [A, B], False), (2, [B, C], False), (3, [C], False)], [A], []),
        ([(1, [A], True), (2, [B], False)], [], [2]),
        ([(1, [A], True), (2, [A], False)], [], []),
        # a build that is queued counts also against an older approval
        ([(1, [A], False), (2, [A], True)], [], []),
        ([(1, [A], False), (2, [B], True), (3, [B], False), (4, [C], False)], [], [1, 4]),
    ],
)
def test_a_build_starts_when_its_agents_are_free_in_the_order_of_approvals(
    waiting: list[tuple[int, list[uuid.UUID], bool]], held: list[uuid.UUID], expected: list[int]
) -> None:
    rows = [Waiting(uuid.UUID(int=n), agents, queued) for n, agents, queued in waiting]
    assert startable(rows, held) == [uuid.UUID(int=n) for n in expected]


# --- what a report does ---

SHA, OTHER = "a" * 64, "b" * 64
ACTIVATE = Desired("activate", HERE, HERE, SHA, 5)
ROLLBACK = Desired("rollback", BEFORE, HERE, SHA, 4)
RETURN = Desired("rollback", HERE, HERE, SHA, 4)
STOP = Desired("stop", None, HERE, None, None)


def target(status: str = "assigned", **more: Any) -> TargetState:
    facts: dict[str, Any] = {"settled": False, "rollback_requested": False, "in_bake": False, **more}
    return TargetState(deployment_id=HERE, status=status, **facts)


def outcome(status: str, at: TargetState, wanted: Desired, **given: Any) -> ReportEffect | str:
    """The effect, or the code of the refusal. Without `given`, the report names the desired bundle."""
    named = {"bundle_sha256": wanted.bundle_sha256, "sequence": wanted.sequence, **given}
    try:
        return effect_of(AgentReport(status, **named), at, wanted)
    except Conflict as error:
        return error.code


def to(status: str) -> ReportEffect:
    return ReportEffect(to=status)


ACTIVATED = ReportEffect(to="activated", settles=True, confirms=True)
ROLLED_BACK = ReportEffect(to="rolled_back", settles=True, confirms=True)
CONFIRMED = ReportEffect(confirms=True)
FAILED = ReportEffect(to="failed", settles=True)
ASKED = {"rollback_requested": True}
SETTLED = {"settled": True}


@pytest.mark.parametrize(
    ("status", "at", "wanted", "expected"),
    [
        ("fetched", target(), ACTIVATE, to("fetched")),
        ("verified", target(), ACTIVATE, to("verified")),
        ("verified", target("fetched"), ACTIVATE, to("verified")),
        ("fetched", target("fetched"), ACTIVATE, NOTHING),
        ("fetched", target("verified"), ACTIVATE, NOTHING),
        ("fetched", target("activated", **SETTLED), ACTIVATE, NOTHING),
        ("fetched", target(**ASKED), ROLLBACK, NOTHING),
        ("fetched", target(), STOP, "not_wanted"),
        ("activated", target("verified"), ACTIVATE, ACTIVATED),
        ("activated", target(), ACTIVATE, ACTIVATED),
        ("activated", target("activated", **SETTLED), ACTIVATE, CONFIRMED),
        ("activated", target("activated"), ACTIVATE, ACTIVATED),
        ("activated", target("failed", **SETTLED), ACTIVATE, ACTIVATED),
        ("activated", target(**ASKED), STOP, "not_wanted"),
        ("rolled_back", target(), ACTIVATE, "not_wanted"),
        ("rolled_back", target("activated", **ASKED), ROLLBACK, ROLLED_BACK),
        ("rolled_back", target("rolled_back", **ASKED, **SETTLED), ROLLBACK, CONFIRMED),
        ("rolled_back", target("activated", **SETTLED), ROLLBACK, CONFIRMED),
        ("rolled_back", target("verified"), RETURN, ACTIVATED),
        ("activated", target("activated", **ASKED), ROLLBACK, ROLLED_BACK),
        ("stopped", target("activated", **ASKED), STOP, ROLLED_BACK),
        ("stopped", target("failed", **SETTLED), STOP, CONFIRMED),
        ("stopped", target(), ACTIVATE, "not_wanted"),
        ("stopped", target(**ASKED), ROLLBACK, "not_wanted"),
        ("failed", target("fetched"), ACTIVATE, FAILED),
        ("failed", target("activated", **SETTLED), ACTIVATE, "already_settled"),
        ("failed", target("activated", in_bake=True, **SETTLED), ACTIVATE, FAILED),
        ("failed", target("verified", in_bake=True, **SETTLED), ACTIVATE, "already_settled"),
        ("failed", target("unreachable", **SETTLED), ACTIVATE, FAILED),
        ("failed", target("activated", **ASKED), ROLLBACK, FAILED),
        ("failed", target("activated", in_bake=True, **ASKED, **SETTLED), ROLLBACK, "already_settled"),
        ("failed", target("activated", **SETTLED), ROLLBACK, NOTHING),
        ("failed", target("failed", **SETTLED), STOP, NOTHING),
        ("failed", target("failed", **SETTLED, failed_bundle=SHA), ACTIVATE, NOTHING),
        ("failed", target("failed", **SETTLED, failed_bundle=OTHER), ACTIVATE, "already_settled"),
        ("failed", target("failed", failed_bundle=SHA), ACTIVATE, FAILED),
    ],
)
def test_the_effect_of_a_report(status: str, at: TargetState, wanted: Desired, expected: ReportEffect | str) -> None:
    assert outcome(status, at, wanted) == expected


@pytest.mark.parametrize("status", ["fetched", "verified", "activated", "rolled_back", "stopped", "failed"])
def test_a_report_on_something_else_than_is_desired_has_no_effect(status: str) -> None:
    stranger = Desired("activate", THIRD, THIRD, SHA, 5)
    assert outcome(status, target(), stranger) == "not_wanted"
    if status != "stopped":
        wanted = ROLLBACK if status == "rolled_back" else ACTIVATE
        assert outcome(status, target(**ASKED), wanted, bundle_sha256=OTHER) == "not_wanted"
        assert outcome(status, target(**ASKED), wanted, sequence=9) == "not_wanted"


def test_a_failure_may_leave_its_bundle_open() -> None:
    assert outcome("failed", target(), ACTIVATE, bundle_sha256=None, sequence=None) == FAILED
    repeated = target("failed", **SETTLED, failed_bundle=SHA)
    stranger = Desired("activate", THIRD, THIRD, OTHER, 6)
    assert outcome("failed", repeated, stranger, bundle_sha256=None) == NOTHING, "a late repetition"
    assert outcome("failed", repeated, stranger, bundle_sha256=SHA) == NOTHING
    assert outcome("failed", repeated, stranger, bundle_sha256=OTHER) == "not_wanted"
    assert outcome("activated", repeated, stranger, bundle_sha256=None) == "not_wanted"


# --- how a rollback ends ---


def test_the_outcome_of_every_pair_of_targets() -> None:
    rows = [
        RollbackTarget(*facts) for facts in itertools.product(("activated", "failed"), (False, True), (False, True))
    ]
    for pair in itertools.product(rows, repeat=2):
        if any(row.status == "failed" and row.settled and not row.removed for row in pair):
            expected = RollbackOutcome.FAIL
        elif all(row.settled or row.removed for row in pair):
            expected = RollbackOutcome.CONFIRM
        else:
            expected = RollbackOutcome.WAIT
        assert rollback_outcome(pair) is expected, pair
    assert rollback_outcome([]) is RollbackOutcome.CONFIRM
    assert rollback_outcome([RollbackTarget("unreachable", True)]) is RollbackOutcome.CONFIRM


# --- the next step, at its edges ---

NOW = dt.datetime(2026, 5, 4, 10, 0, tzinfo=dt.UTC)
TWO = (Phase(50, 60), Phase(100, 0))
DONE = Tally(0, "activated", True, 2)


@pytest.mark.parametrize(
    ("present", "ends", "targets", "more", "expected"),
    [
        (None, None, [Tally(0, "assigned", False)], {}, Step.ADVANCE),
        (0, None, [Tally(0, "assigned", False)], {}, Step.WAIT),
        (0, None, [Tally(0, "assigned", False, 0), DONE], {}, Step.BAKE),
        (0, None, [DONE, Tally(1, "assigned", False)], {}, Step.BAKE),
        (1, None, [DONE, Tally(1, "assigned", False)], {}, Step.WAIT),
        (0, NOW, [DONE], {}, Step.ADVANCE),
        (0, NOW + dt.timedelta(milliseconds=1), [DONE], {}, Step.WAIT),
        (0, NOW, [DONE], {"silent_count": 1}, Step.WAIT),
        (1, None, [DONE], {"silent_count": 1}, Step.ACTIVATE),
        (1, None, [DONE], {}, Step.ACTIVATE),
        (0, NOW, [DONE, Tally(0, "failed", True)], {"max_failures": 1}, Step.ADVANCE),
        (0, NOW, [DONE, Tally(0, "failed", True, 2)], {"max_failures": 1}, Step.FAIL),
        (0, NOW, [Tally(0, "failed", True), Tally(0, "unreachable", True)], {"max_failures": 1}, Step.FAIL),
        (None, None, [Tally(0, "failed", True)], {}, Step.FAIL),
        (0, NOW, [Tally(0, "rolled_back", True, 9)], {}, Step.ADVANCE),
    ],
)
def test_the_next_step_at_the_edges(
    present: int | None, ends: dt.datetime | None, targets: list[Tally], more: dict[str, int], expected: Step
) -> None:
    assert next_step(TWO, present, ends, targets, now=NOW, **{"max_failures": 0, **more}) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "facts", "expected"),
    [
        (0, {"status": "failed", "present": None, "passed": True}, PhaseState.PASSED),
        (0, {"status": "deploying", "present": 0, "passed": True}, PhaseState.PASSED),
        *(
            (0, {"status": s, "present": None}, PhaseState.WAITING)
            for s in ("pending_approval", "approved", "building")
        ),
        (0, {"status": "building", "present": 0}, PhaseState.WAITING),
        (0, {"status": "deploying", "present": None}, PhaseState.WAITING),
        (1, {"status": "deploying", "present": 0}, PhaseState.WAITING),
        (0, {"status": "deploying", "present": 0}, PhaseState.DEPLOYING),
        (0, {"status": "deploying", "present": 0, "baking": True}, PhaseState.BAKING),
        (0, {"status": "rolling_back", "present": 0, "baking": True}, PhaseState.STOPPED),
        (0, {"status": "failed", "present": None}, PhaseState.UNTOUCHED),
        (1, {"status": "rolled_back", "present": 0}, PhaseState.UNTOUCHED),
        (1, {"status": "rolled_back", "present": 1}, PhaseState.STOPPED),
    ],
)
def test_what_a_phase_shows(number: int, facts: dict[str, Any], expected: PhaseState) -> None:
    assert phase_state(number, **{"baking": False, "passed": False, **facts}) is expected


# --- what an agent should run, as if a deployment had been rolled back ---


def assigned(number: int, **more: Any) -> Assigned:
    facts: dict[str, Any] = {"deployment_status": "active", "target_status": "activated", **more}
    return Assigned(uuid.UUID(int=number), number, SHA, **facts)


def test_a_history_without_one_deployment_has_it_rolled_back_and_the_others_as_they_were() -> None:
    walk = [assigned(2), assigned(1)]
    first, second = without(walk, uuid.UUID(int=2), NOW)
    assert first == assigned(2, rolling_back_at=NOW, rollback_at=NOW)
    assert second == walk[1]


def test_a_stop_is_served_for_what_was_rolled_back_last_else_for_the_newest() -> None:
    failed = {"deployment_status": "failed", "target_status": "failed"}
    back = {"deployment_status": "rolled_back", "target_status": "rolled_back", "rolling_back_at": NOW}
    newest, older = assigned(2, **failed), assigned(1, **back, rollback_at=NOW)
    assert desired_of([newest, older]) == Desired("stop", None, uuid.UUID(int=1), None, None)
    assert desired_of([newest, assigned(1, **back)]) == Desired("stop", None, uuid.UUID(int=2), None, None)
    later = assigned(2, **back, rollback_at=NOW + dt.timedelta(seconds=1))
    assert desired_of([later, older]).for_deployment_id == uuid.UUID(int=2)
    assert desired_of([assigned(2, **back, rollback_at=NOW), older]).for_deployment_id == uuid.UUID(int=2)


def test_a_bake_lasts_its_seconds() -> None:
    assert Phase(50, 90).bake == dt.timedelta(seconds=90)
