"""Rate windows of agents: one for an agent, leased a few slots at a time for heartbeats."""

from __future__ import annotations

import uuid

import pytest
from django.db import connection

from apps.agents import services
from apps.agents.registry import Desired
from apps.core import wake
from apps.limits import overrides, windows
from apps.limits.models import USUAL
from apps.limits.services import set_rate_override
from tests.flows.world import until
from tests.served import Served

from .conftest import SYSTEM, FakeSource, World

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

LEFT = "X-RateLimit-Remaining"


@pytest.fixture(autouse=True)
def _fresh(heartbeats_cached: bool) -> None:
    windows._local.reset()
    windows._leases.reset()


def test_heartbeats_use_leased_slots_and_other_calls_one_each(world: World, source: FakeSource) -> None:
    agent, other = world.enroll(), world.enroll()
    # a lease of six, of which this is the first
    assert agent.beat().headers[LEFT] == "234"
    assert agent.get("signing-keys").headers[LEFT] == "233"
    assert [agent.beat().headers[LEFT] for _ in range(5)] == ["4", "3", "2", "1", "0"]
    assert agent.beat().headers[LEFT] == "227"
    assert other.get("signing-keys").headers[LEFT] == "239"


def test_a_call_too_many_is_429_also_when_it_would_be_answered_from_memory(
    world: World, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = world.enroll()
    assert agent.beat().status_code == 200
    if connection.vendor == "postgresql":
        until(lambda: wake.delivered_within(1), 20)
    for _ in range(4):
        agent.beat()
    windows._leases.reset()
    monkeypatch.setitem(USUAL, "agent_calls", 3)
    answer = agent.beat()
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(answer.headers["Retry-After"]) <= 120
    assert answer.headers[LEFT] == "0"
    assert agent.get("signing-keys").status_code == 429


def test_a_poll_that_waits_counts_once_however_often_it_is_looked_at(
    world: World, source: FakeSource, server: Served
) -> None:
    agent = world.enroll()
    seq = agent.beat().json()["desired"]["directive"]["directive_seq"]
    windows.give_back_leases()
    poll = server.begin("GET", f"{agent.path}/deployment?wait=20&after={seq}", agent.token)
    server.until_waiting(1)
    counted = int(agent.get("signing-keys").headers[LEFT])
    source.wanted = Desired("stop", None, uuid.uuid4(), None, None)
    world.in_transaction(lambda: services.announce([uuid.UUID(agent.id)]), write=True)
    answer = poll.result(20)
    assert answer.status == 200
    assert answer.headers["x-ratelimit-remaining"] == str(counted + 1)
    assert int(agent.get("signing-keys").headers[LEFT]) == counted - 1


def test_agents_have_the_limit_of_their_organization_also_when_they_are_answered_from_memory(
    world: World, source: FakeSource
) -> None:
    agent, foreign = world.enroll(), world.enroll(foreign=True)
    assert agent.beat().headers["X-RateLimit-Limit"] == "240"
    if connection.vendor == "postgresql":
        until(lambda: wake.delivered_within(1), 20)
    set_rate_override(actor=SYSTEM, organization=world.organization, expected_rev=None, agent_calls=60)
    overrides.forget()
    codes: list[int] = []
    world.at_once([lambda: codes.extend(agent.get("signing-keys").status_code for _ in range(9)) for _ in range(8)])
    # six slots went to the heartbeat before, five of them for the next ones
    assert sorted(codes) == [200] * 54 + [429] * 18
    windows._leases.reset()
    answers = [agent.beat(), agent.get("signing-keys"), foreign.beat()]
    assert [(answer.status_code, answer.headers["X-RateLimit-Limit"]) for answer in answers] == [
        (429, "60"),
        (429, "60"),
        (200, "240"),
    ]
