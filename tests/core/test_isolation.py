"""A failing item does not stop the others; it is logged, counted, and retried with a growing delay."""

from __future__ import annotations

import datetime as dt
import itertools

import psycopg.errors
import pytest
import structlog
import time_machine
from django.db import InterfaceError, OperationalError

from apps.core import clock, isolation
from apps.core.db import database_away
from apps.core.isolation import for_each


def broken(item: str) -> int:
    if item.startswith("poison"):
        raise RuntimeError(f"{item} does not work")
    return 1


def test_the_others_go_on_and_the_failure_is_named() -> None:
    with structlog.testing.capture_logs() as logged, isolation.counting() as tally:
        assert for_each("first", ["poison", "a", "b"], broken) == 2
    assert tally.failed == 1
    (line,) = logged
    assert (line["sweep"], line["item"], line["log_level"]) == ("first", "poison", "error")
    assert line["reason"] == "RuntimeError: poison does not work"


def test_each_failure_waits_longer_than_the_one_before_and_a_success_is_forgotten() -> None:
    tries: list[dt.datetime] = []

    def act(item: str) -> int:
        tries.append(clock.now())
        if len(tries) < 5:
            raise RuntimeError
        return 1

    with time_machine.travel(dt.datetime(2030, 1, 1, tzinfo=dt.UTC), tick=False) as traveller:
        for _ in range(40):
            for_each("second", ["item"], act)
            traveller.shift(dt.timedelta(seconds=1))
            if len(tries) == 5:
                break
    pauses = [(b - a).total_seconds() for a, b in itertools.pairwise(tries)]
    assert pauses == [1, 2, 4, 8]
    assert not isolation._failures.waits("second", "item", 0)


def test_those_that_wait_for_their_next_try_are_counted_too() -> None:
    for_each("third", ["poison"], broken)
    with isolation.counting() as tally:
        for_each("third", ["poison", "a"], broken)
    assert tally.failed == 1


def test_a_long_list_is_processed_in_several_runs_and_failed_items_cost_time_once() -> None:
    waiting = [f"poison {n}" for n in range(50)] + [f"item {n}" for n in range(5)]
    seen: list[str] = []

    def act(item: str) -> int:
        seen.append(item)
        return broken(item)

    assert for_each("fourth", waiting, act, seconds=-1) == 0
    assert not seen
    assert for_each("fourth", waiting, act, seconds=60) == 5
    assert for_each("fourth", waiting, act, seconds=60) == 5
    assert len(seen) == 60


@pytest.mark.parametrize("error", [OperationalError("gone"), InterfaceError("closed")])
def test_a_database_that_is_away_ends_the_run(error: Exception) -> None:
    def act(item: str) -> int:
        raise error

    with pytest.raises(type(error)):
        for_each("fifth", ["a", "b"], act)


@pytest.mark.parametrize(
    "cause", [psycopg.errors.LockNotAvailable(), psycopg.errors.QueryCanceled(), psycopg.errors.DeadlockDetected()]
)
def test_one_statement_that_was_refused_is_no_database_that_is_away(cause: Exception) -> None:
    error = OperationalError("refused")
    error.__cause__ = cause
    assert not database_away(error)
    shutdown = OperationalError("gone")
    shutdown.__cause__ = psycopg.errors.AdminShutdown()
    assert database_away(shutdown)
