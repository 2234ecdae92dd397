"""Killed at every step of the road, on SQLite: after restart it is finished or cleanly not begun, once; nothing is lost or held."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.cases import Case
from tests.faults.killing import cases_on, check
from tests.faults.stack import Stack

pytestmark = pytest.mark.faults


@pytest.mark.timeout(480)
@pytest.mark.parametrize("case", cases_on("sqlite"))
def test_killed_there_the_road_ends_as_if_nothing_had_happened(stack_on: Callable[[str], Stack], case: Case) -> None:
    check(stack_on("sqlite"), case)
