"""One case: the road undisturbed, the road with a kill on it, and what differs at their ends."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from tests.faults.cases import CASES, Case, Road
from tests.faults.conftest import EVERY, VENDORS
from tests.faults.journey import PATIENCE, Journey
from tests.faults.stack import Stack
from tests.flows.world import until
from tests.processes import is_alive

LONG_ROAD = 8


def _share(vendor: str) -> list[Case]:
    """The suite's part for one database: each point once. Long roads are shared case by case, short ones go to one of the two
    whole, so that few roads have to be walked undisturbed on both."""
    first = {case.point: case for case in reversed(CASES)}
    by_road: dict[Road, list[Case]] = {}
    for case in CASES:
        if first[case.point] is case:
            by_road.setdefault(case.road, []).append(case)
    mine = []
    for turn, cases in enumerate(by_road.values()):
        for number, case in enumerate(cases):
            if VENDORS[(turn + (number if len(cases) >= LONG_ROAD else 0)) % len(VENDORS)] == vendor:
                mine.append(case)
    return mine


def cases_on(vendor: str) -> list[Any]:
    """The cases of one database: all of them, or its share."""
    cases = CASES if EVERY else _share(vendor)
    # spread, so that one service is not killed over and over within seconds: that is slowed down, as it should be
    spread = sorted(cases, key=lambda case: (cases.index(case) * 37) % len(cases))
    return [pytest.param(case, id=case.name) for case in spread]


def differences(found: Any, expected: Any, where: str = "") -> list[str]:
    """What differs, leaf by leaf."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted({*found, *expected})
        return [d for k in keys for d in differences(found.get(k), expected.get(k), f"{where}/{k}")]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return [
            d for n, pair in enumerate(zip(found, expected, strict=True)) for d in differences(*pair, f"{where}/{n}")
        ]
    return [] if found == expected else [f"{where} is {found!r}, undisturbed {expected!r}"]


_undisturbed: dict[tuple[str, str], dict[str, Any]] = {}
_numbers = iter(range(10_000))


def _walk(stack: Stack, road: Road, case: Case | None, expected: dict[str, Any] | None = None) -> dict[str, Any]:
    """The end state of the road; on the way a process is killed at the point of `case`."""
    journey = Journey(stack, f"{road.__name__}-{next(_numbers)}")
    journey.armed = case
    journey.arm()
    try:
        road(journey)
        journey.settle()
        if case is not None:
            points = journey.hosts[0].points if case.on_host else stack.points
            hit = points.hit()
            assert hit is not None, f"{case.point} was never reached"
            until(lambda: not is_alive(hit["pid"]), PATIENCE)
        until(lambda: not stack.look_into("violations", at_rest=True), PATIENCE)
        if journey.deleted:
            return journey.snapshot()
        files = stack.look_into("files", environment_id=journey.environment)
        assert (files["lost"], files["orphans"]) == (0, 0), files
        if expected is not None:
            # a process that was killed last repeats what it was about to do when it is started again
            with contextlib.suppress(AssertionError):
                until(lambda: not differences(journey.snapshot(), expected), 20)
        return journey.snapshot()
    finally:
        stack.points.disarm()
        journey.end()


def check(stack: Stack, case: Case) -> None:
    """Kill at the point of the case: the road ends as if nothing had happened."""
    key = (stack.vendor, case.road.__name__)
    try:
        if key not in _undisturbed:
            _undisturbed[key] = _walk(stack, case.road, None)
        found = _walk(stack, case.road, case, _undisturbed[key])
    except Exception as error:
        error.add_note(stack.log_tail())
        error.add_note("\n".join(stack.look_into("violations", at_rest=True)))
        raise
    differing = differences(found, _undisturbed[key])
    assert not differing, "\n".join(differing)
