"""Killed at every step of the road: after restart it is finished or cleanly not begun, once, and nothing is lost or held."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.cases import CASES, Case, Road
from tests.faults.conftest import EVERY, VENDORS
from tests.faults.journey import PATIENCE, Journey
from tests.faults.stack import Stack
from tests.flows.world import until

pytestmark = pytest.mark.faults


def _parameters() -> list[Any]:
    chosen = []
    for number, case in enumerate(CASES):
        for vendor in VENDORS if EVERY else (VENDORS[number % len(VENDORS)],):
            group = pytest.mark.xdist_group(vendor)
            chosen.append(pytest.param(vendor, case, id=f"{case.name}-{vendor}", marks=group))
    return chosen


_undisturbed: dict[tuple[str, str], dict[str, Any]] = {}
_numbers = iter(range(10_000))


def _walk(stack: Stack, road: Road, case: Case | None) -> dict[str, Any]:
    """The end state of the road; on the way somebody is killed where `case` says."""
    journey = Journey(stack, f"{road.__name__}-{next(_numbers)}")
    journey.armed = case
    if case is not None and not case.on_host:
        stack.points.arm(case.point, case.skip)
    try:
        road(journey)
        journey.settle()
        if case is not None:
            points = journey.hosts[0].points if case.on_host else stack.points
            hit = points.hit()
            assert hit is not None, f"{case.point} was never reached"
            assert not os.path.exists(f"/proc/{hit['pid']}"), f"{hit['pid']} lives on"
        until(lambda: not stack.look("violations", at_rest=True), PATIENCE)
        files = stack.look("files", environment_id=journey.environment)
        assert (files["lost"], files["orphans"]) == (0, 0), files
        return journey.snapshot()
    finally:
        stack.points.disarm()
        journey.end()


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("vendor", "case"), _parameters())
def test_killed_there_the_road_ends_as_if_nothing_had_happened(
    stack_on: Callable[[str], Stack], vendor: str, case: Case
) -> None:
    stack = stack_on(vendor)
    key = (vendor, case.road.__name__)
    try:
        if key not in _undisturbed:
            _undisturbed[key] = _walk(stack, case.road, None)
        found = _walk(stack, case.road, case)
    except Exception as error:
        error.add_note(stack.log_tail())
        error.add_note("\n".join(stack.look("violations", at_rest=True)))
        raise
    assert found == _undisturbed[key]
