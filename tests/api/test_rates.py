"""Rate windows of people: which calls count, what each answer states, and what a call too many is answered with."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.test import Client

from apps.core import metrics
from apps.limits import windows
from apps.limits.models import USUAL
from tests.support import PASSWORD, Caller, Tenant, caller_for

pytestmark = pytest.mark.django_db

HEADERS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    windows._local.reset()
    windows._leases.reset()


@pytest.fixture
def three_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(USUAL, "person_calls", 3)


def test_every_authenticated_answer_states_the_window(tenant: Tenant) -> None:
    vera = caller_for(tenant.people["vera"])
    path = tenant.path(tenant.dev)
    answers = [
        vera.get("/me"),
        vera.get(f"{path}/deployments?nonsense=1"),
        vera.post(f"{path}/drafts", {"name": "x"}),
        vera.get(f"{path}/drafts/00000000-0000-7000-8000-000000000000"),
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 403, 404]
    for number, answer in enumerate(answers, start=1):
        limit, remaining, reset = (int(answer.headers[name]) for name in HEADERS)
        assert (limit, remaining) == (600, 600 - number)
        assert time.time() < reset <= time.time() + 61


def test_an_anonymous_answer_states_none(tenant: Tenant) -> None:
    for caller in (Caller(), Caller("byt_pat_nonsense")):
        answer = caller.get("/me")
        assert answer.status_code == 401
        assert not any(name in answer.headers for name in HEADERS)


def test_a_call_too_many_is_429_and_does_not_reach_the_view(tenant: Tenant, three_a_minute: None) -> None:
    alice = caller_for(tenant.people["alice"])
    for _ in range(3):
        assert alice.get("/me").status_code == 200
    path = f"{tenant.path(tenant.dev)}/drafts"
    for answer in (alice.get("/me"), alice.post(path, {"name": "late", "spec": ""})):
        assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert answer.headers["X-RateLimit-Remaining"] == "0"
    assert caller_for(tenant.people["bob"]).get(path).json()["results"] == []


def test_sessions_of_a_person_share_one_window_and_each_token_has_its_own(tenant: Tenant, three_a_minute: None) -> None:
    alice = tenant.people["alice"]
    sessions = [Client(), Client()]
    for session in sessions:
        assert session.login(username=alice.email, password=PASSWORD)
    left = [session.get("/api/v1/me").headers["X-RateLimit-Remaining"] for session in (*sessions, sessions[0])]
    assert left == ["2", "1", "0"]
    assert sessions[1].get("/api/v1/me").status_code == 429
    token = caller_for(alice)
    assert token.get("/me").headers["X-RateLimit-Remaining"] == "2"
    assert caller_for(alice).get("/me").headers["X-RateLimit-Remaining"] == "2"


def test_while_the_store_is_away_calls_are_served_and_counted_by_this_process(
    tenant: Tenant, three_a_minute: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> Any:
        raise windows.StoreAway("ConnectionError")

    monkeypatch.setattr(windows, "store", away)
    monkeypatch.setattr(metrics, "_kept", None)
    alice = caller_for(tenant.people["alice"])
    answers = [alice.get("/me") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert not any(name in answer.headers for answer in answers for name in HEADERS)
    assert b"byteor_rate_calls_counted_alone 4.0" in metrics.exposition()
