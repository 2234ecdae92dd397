"""How a rollout goes on: a pure function, by table and by what must hold of every plan and every tally."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.deployments.rollout import (
    ALL_AT_ONCE,
    BAD,
    Phase,
    Step,
    Tally,
    assign_phases,
    next_step,
    phases_of,
    upto,
)
from apps.deployments.services.requests import Strategy

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SOON, PAST = NOW + dt.timedelta(seconds=1), NOW - dt.timedelta(seconds=1)
THREE = (Phase(10, 60), Phase(50, 0), Phase(100, 60))


def ids(count: int) -> list[uuid.UUID]:
    return [uuid.UUID(int=n + 1) for n in range(count)]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [1, 1, 1]),
        (3, [1, 2, 3]),
        (10, [1, 5, 10]),
        (11, [2, 6, 11]),
        (30, [3, 15, 30]),
        (10_000, [1000, 5000, 10_000]),
    ],
)
def test_percentages_are_cumulative_and_rounded_up(count: int, expected: list[int]) -> None:
    assert upto(THREE, count) == expected


def test_agents_are_taken_in_the_order_of_their_ids_however_they_were_named() -> None:
    agents = ids(10)
    assert assign_phases(reversed(agents), THREE) == assign_phases(agents, THREE)
    assert [assign_phases(agents, THREE)[a] for a in agents] == [0, 1, 1, 1, 1, 2, 2, 2, 2, 2]


plans = st.lists(st.tuples(st.integers(1, 99), st.integers(0, 3)), max_size=5, unique_by=lambda pair: pair[0]).map(
    lambda rows: (*(Phase(p, b) for p, b in sorted(rows)), Phase(100, 0))
)


@given(plans, st.integers(1, 200))
def test_every_agent_is_in_exactly_one_phase_and_no_phase_has_more_than_its_share(
    plan: tuple[Phase, ...], count: int
) -> None:
    phases = assign_phases(ids(count), plan)
    assert set(phases) == set(ids(count))
    for number, phase in enumerate(plan):
        so_far = sum(1 for p in phases.values() if p <= number)
        assert so_far * 100 >= count * phase.percent
        assert (so_far - 1) * 100 < count * phase.percent


def step(present: int | None, *rows: tuple[Any, ...], **more: Any) -> Step:
    tallies = [Tally(phase, status, settled) for phase, status, settled in rows]
    options = {"max_failures": 0, "now": NOW, "plan": THREE, "ends": None, "silent_count": 0, **more}
    plan, ends = options.pop("plan"), options.pop("ends")
    return next_step(plan, present, ends, tallies, **options)


WAITING = (2, "pending", False)


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (Step.ADVANCE, step(None, (0, "pending", False), WAITING)),
        (Step.WAIT, step(0, (0, "assigned", False), WAITING)),
        (Step.WAIT, step(0, (0, "activated", True), (0, "verified", False), WAITING)),
        (Step.BAKE, step(0, (0, "activated", True), WAITING)),
        (Step.WAIT, step(0, (0, "activated", True), WAITING, ends=SOON)),
        (Step.ADVANCE, step(0, (0, "activated", True), WAITING, ends=NOW)),
        (Step.ADVANCE, step(0, (0, "activated", True), WAITING, ends=PAST)),
        (Step.WAIT, step(0, (0, "activated", True), WAITING, ends=PAST, silent_count=1)),
        (Step.ADVANCE, step(1, (0, "activated", True), (1, "activated", True), WAITING)),
        (Step.BAKE, step(2, (2, "activated", True))),
        (Step.ACTIVATE, step(2, (2, "activated", True), ends=PAST)),
        (Step.FAIL, step(0, (0, "failed", True), (0, "assigned", False), WAITING)),
        (Step.FAIL, step(0, (0, "unreachable", True), WAITING)),
        (Step.FAIL, step(0, (0, "failed", True), WAITING, ends=SOON)),
        (Step.FAIL, step(0, (0, "activated", True), (2, "failed", True))),
        (Step.FAIL, step(None, (0, "failed", True), (0, "pending", False))),
        (Step.BAKE, step(0, (0, "failed", True), WAITING, max_failures=1)),
        (Step.WAIT, step(0, (0, "assigned", False), plan=ALL_AT_ONCE)),
        (Step.ACTIVATE, step(0, (0, "activated", True), plan=ALL_AT_ONCE)),
        # a phase that adds no agent is settled at once, and still bakes
        (Step.BAKE, step(0, WAITING)),
        (Step.ADVANCE, step(1, WAITING)),
    ],
)
def test_what_comes_next(expected: Step, got: Step) -> None:
    assert got is expected


tallies = st.lists(
    st.builds(
        Tally,
        st.integers(0, 2),
        st.sampled_from(["pending", "assigned", "verified", "activated", "failed", "unreachable"]),
        st.booleans(),
        st.integers(1, 3),
    ),
    max_size=6,
)


@given(tallies, st.integers(0, 2), st.sampled_from([None, SOON, PAST]), st.integers(0, 6), st.integers(0, 1))
def test_it_never_goes_on_before_everything_of_a_phase_is_well(
    rows: list[Tally], present: int, ends: dt.datetime | None, most: int, silent_count: int
) -> None:
    got = next_step(THREE, present, ends, rows, max_failures=most, now=NOW, silent_count=silent_count)
    bad = sum(row.number for row in rows if row.status in BAD)
    assert (got is Step.FAIL) == (bad > most)
    if got in (Step.ADVANCE, Step.ACTIVATE):
        assert all(row.settled for row in rows if row.phase <= present)
        if THREE[present].bake_seconds:
            assert ends is not None
            assert ends <= NOW
            assert not silent_count
    assert (got is Step.ACTIVATE) <= (present == 2)
    assert (got is Step.ADVANCE) <= (present < 2)


def test_a_strategy_as_it_is_stored() -> None:
    assert phases_of({"type": "all_at_once"}) == ALL_AT_ONCE
    stored = {"type": "phased", "phases": [{"percent": 5, "bake_seconds": 9}, {"percent": 100, "bake_seconds": 0}]}
    assert phases_of(stored) == (Phase(5, 9), Phase(100, 0))


def phased(*phases: tuple[int, int]) -> dict[str, Any]:
    return {"type": "phased", "phases": tuple(Phase(*each) for each in phases)}


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"type": "canary"}, ["type unknown_strategy"]),
        ({"type": ""}, ["type unknown_strategy"]),
        ({"phases": (Phase(100, 0),)}, ["phases phases"]),
        (phased(), ["phases phases"]),
        ({"max_failures": -1}, ["max_failures out_of_range"]),
        (phased((0, 0), (100, 0)), ["phases/0/percent out_of_range"]),
        (phased((101, 0), (100, 0)), ["phases/0/percent out_of_range", "phases/1/percent not_growing"]),
        (phased((50, 0), (50, 0), (100, 0)), ["phases/1/percent not_growing"]),
        (phased((50, 0), (49, 0), (100, 0)), ["phases/1/percent not_growing"]),
        (phased((100, -1)), ["phases/0/bake_seconds out_of_range"]),
        (phased((50, 0), (100, 86_401)), ["phases/1/bake_seconds out_of_range"]),
        (phased((99, 0)), ["phases/0/percent not_everybody"]),
    ],
)
def test_a_strategy_that_can_not_be_followed_is_refused_with_pointers(
    change: dict[str, Any], refused: list[str]
) -> None:
    found = [f"{error.pointer.removeprefix('/strategy/')} {error.code}" for error in Strategy(**change).problems()]
    assert found == refused


def test_a_strategy_at_its_limits_can_be_followed() -> None:
    assert Strategy().problems() == []
    assert Strategy("phased", 3, True, (Phase(1, 86_400), Phase(100, 0))).problems() == []
