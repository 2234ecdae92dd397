"""Readiness: a failed required check is not_ready, any other is degraded, and a probe runs no check itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from apps.core import pooler, readiness
from apps.core.readiness import WEB, WORKER, Degraded, NotReady, register_check
from apps.jobs import process_health
from apps.jobs.models import ProcessClock
from apps.jobs.process_health import judge_clock


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No checks but a test's own."""
    monkeypatch.setattr(readiness, "_checks", {})
    monkeypatch.setattr(readiness, "_found", {})
    return


def bad() -> None:
    raise NotReady("it is broken")


def well() -> None:
    return


def asked() -> tuple[int, Any]:
    answer = Client().get("/readyz")
    return answer.status_code, answer.json()


def test_a_failed_required_check_is_not_ready_and_any_other_is_degraded(checks: None) -> None:
    register_check("database", well, needed_by=(WEB, WORKER))
    register_check("storage", bad)
    register_check("chores", bad, needed_by=(WORKER,))
    readiness.run_checks()
    found = {"database": None, "storage": "it is broken", "chores": "it is broken"}
    assert asked() == (200, {"status": "degraded", "checks": found, "degraded": ["storage", "chores"]})
    at_worker = readiness.report(WORKER)
    assert (at_worker.can_serve, at_worker.body["status"]) == (False, "not_ready")
    assert at_worker.body["degraded"] == ["storage"]
    register_check("database", bad, needed_by=(WEB,))
    readiness.run_checks()
    assert asked()[0] == 503


def test_a_check_that_reports_degraded_keeps_every_process_ready(checks: None) -> None:
    def mild() -> None:
        raise Degraded("all clocks differ")

    register_check("clock", mild, needed_by=(WEB,))
    readiness.run_checks()
    assert asked() == (200, {"status": "degraded", "checks": {"clock": "all clocks differ"}, "degraded": ["clock"]})


def test_no_probe_looks_and_an_old_look_is_503(checks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    register_check("database", lambda: looks.append(1), needed_by=(WEB,))
    assert asked() == (
        503,
        {"status": "not_ready", "checks": {"database": "not checked yet"}, "degraded": []},
    )
    now = time.monotonic()
    monkeypatch.setattr(readiness.time, "monotonic", lambda: now)
    readiness.run_checks()
    assert [asked()[0] for _ in range(5)] == [200] * 5
    assert len(looks) == 1
    monkeypatch.setattr(readiness.time, "monotonic", lambda: now + 16)
    status, body = asked()
    assert (status, body["checks"]["database"]) == (503, "last checked 16 s ago")


def test_a_check_that_breaks_hides_no_other(checks: None) -> None:
    def broken() -> None:
        raise ValueError("with a secret in it")

    register_check("one", broken)
    register_check("two", well)
    readiness.run_checks()
    assert asked()[1]["checks"] == {"one": "check failed: ValueError", "two": None}


@pytest.mark.django_db
@pytest.mark.postgres
def test_every_check_of_the_product_is_well_enough_to_serve() -> None:
    readiness.run_checks()
    status, body = asked()
    assert status == 200, body
    assert {name for name in body["checks"] if body["checks"][name]} <= {"worker", "chores"}


@pytest.mark.parametrize(
    ("own", "others", "outcome"),
    [
        (0, [], "well"),
        (600_000, [], "degraded"),
        (0, [100, -100, 4000], "well"),
        (600_000, [0, 10, 20], "not_ready"),
        (0, [600_000, 10, 20], "degraded"),
        (-600_000, [0], "not_ready"),
        (0, [-600_000], "degraded"),
        (-60_000, [-60_100, -60_200], "degraded"),
        (-60_000, [60_000], "degraded"),
        (60_000, [0, 0, 60_100, 60_200], "degraded"),
    ],
)
def test_the_clock_that_differs_from_a_majority_is_the_wrong_one(own: int, others: list[int], outcome: str) -> None:
    if outcome == "not_ready":
        with pytest.raises(NotReady):
            judge_clock(own, others)
    else:
        assert (judge_clock(own, others) is None) == (outcome == "well")


@pytest.mark.django_db
@pytest.mark.postgres
def test_a_process_writes_its_clock_and_is_judged_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    if connection.vendor != "postgresql":
        process_health.compare_clocks()
        assert not ProcessClock.objects.exists()
        return
    process_health.compare_clocks()
    row = ProcessClock.objects.get()
    assert abs(row.ahead_ms) < 5000
    for _ in range(3):
        monkeypatch.setattr(process_health, "_own", process_health.new_id())
        process_health.compare_clocks()
    assert ProcessClock.objects.count() == 4
    ahead = process_health.clock.now() + process_health.dt.timedelta(minutes=10)
    monkeypatch.setattr(process_health, "_own", process_health.new_id())
    with monkeypatch.context() as patch, pytest.raises(NotReady, match=r"differs from those of 4 of 4"):
        patch.setattr(process_health.clock, "now", lambda: ahead)
        process_health.compare_clocks()
    assert process_health.apart_by_process() == {(): pytest.approx(600, abs=5)}


@pytest.mark.django_db
@pytest.mark.postgres
def test_the_server_itself_is_no_pooler() -> None:
    assert not pooler.is_transaction_pooler()
