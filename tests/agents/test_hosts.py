"""Warnings about hosts that were set up again or copied."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from time_machine import travel

from apps.agents import heartbeat_cache
from apps.agents.models import Agent
from apps.agents.selectors import warnings_about
from apps.core import clock

from .conftest import EnrolledAgent, FakeSource, World

pytestmark = [pytest.mark.django_db, pytest.mark.postgres]


def enroll_host(world: World, hostname: str) -> Any:
    token = world.token()
    return world.holder(token).post(f"{world.env}/agents", {"hostname": hostname}).json()


def codes(world: World, agent: EnrolledAgent) -> list[str]:
    return [warning["code"] for warning in world.vera.get(f"{world.env}/agents/{agent.id}").json()["warnings"]]


def beats(agent: EnrolledAgent, *starts: str) -> None:
    for start in starts:
        assert agent.beat(start_id=start).status_code == 200


def test_a_host_that_enrolls_again_is_warned_of_the_agent_with_its_name(world: World, source: FakeSource) -> None:
    first = enroll_host(world, "vm.example")
    assert first["warnings"] == []
    EnrolledAgent(world, first["agent_id"], first["api_key"]).beat()
    second = enroll_host(world, "vm.example")
    assert len(second["warnings"]) == 1
    assert "vm (last seen 20" in second["warnings"][0]
    third = enroll_host(world, "vm.example")
    assert "and 1 more" in third["warnings"][0]
    assert enroll_host(world, "other.example")["warnings"] == []


def test_an_agent_shows_the_others_with_its_host_name(world: World, source: FakeSource) -> None:
    first, second = (enroll_host(world, "vm") for _ in range(2))
    agent = EnrolledAgent(world, second["agent_id"], second["api_key"])
    agent.beat()
    assert codes(world, agent) == ["same_hostname"]
    world.bob.delete(f"{world.env}/agents/{first['agent_id']}")
    assert codes(world, agent) == []


def test_agents_that_report_from_one_host_side_by_side_are_no_warning(world: World, source: FakeSource) -> None:
    agents = [EnrolledAgent(world, a["agent_id"], a["api_key"]) for a in (enroll_host(world, "vm") for _ in range(2))]
    for agent in agents:
        agent.beat()
    assert [codes(world, agent) for agent in agents] == [[], []]
    Agent.objects.filter(pk=agents[0].id).update(last_seen_at=clock.now() - dt.timedelta(hours=1))
    assert [codes(world, agent) for agent in agents] == [["same_hostname", "silent"], ["same_hostname"]]


def test_the_name_of_a_host_in_another_environment_is_no_warning(world: World, source: FakeSource) -> None:
    answer = enroll_host(world, "vm")
    agent = EnrolledAgent(world, answer["agent_id"], answer["api_key"])
    agent.beat()
    token = world.bob.post(f"{world.other_env}/enrollment-tokens", {}).json()["token"]
    assert world.holder(token).post(f"{world.other_env}/agents", {"hostname": "vm"}).json()["warnings"] == []
    assert codes(world, agent) == []


def test_restarts_are_no_second_host(world: World, source: FakeSource) -> None:
    agent = world.enroll()
    beats(agent, "a", "a", "b", "b", "c", "d", "e", "f", "g", "h", "i", "j")
    assert codes(world, agent) == []
    assert len(Agent.objects.get(pk=agent.id).recent_starts) == 8


def test_one_heartbeat_that_arrives_late_is_no_second_host(world: World, source: FakeSource) -> None:
    agent = world.enroll()
    beats(agent, "a", "b", "a", "b", "b")
    assert codes(world, agent) == []


@pytest.mark.parametrize("hosts", [2, 3, 4])
def test_hosts_that_alternate_under_one_identity_are_reported(world: World, source: FakeSource, hosts: int) -> None:
    agent = world.enroll()
    beats(agent, *[f"host-{turn % hosts}" for turn in range(2 * hosts + 1)])
    assert codes(world, agent) == ["two_hosts"]


def test_the_warning_ends_when_one_of_them_is_stopped(world: World, source: FakeSource) -> None:
    agent = world.enroll()
    with travel(clock.now(), tick=False) as moment:
        beats(agent, "a", "b", "a", "b", "a")
        assert codes(world, agent) == ["two_hosts"]
        moment.shift(dt.timedelta(minutes=11))
        beats(agent, "a")
        assert codes(world, agent) == []


def test_starts_days_apart_are_not_compared(world: World, source: FakeSource) -> None:
    agent = world.enroll()
    with travel(clock.now(), tick=False) as moment:
        for start in ("a", "b", "a", "b", "a"):
            beats(agent, start)
            moment.shift(dt.timedelta(hours=3))
        beats(agent, "a")
        assert codes(world, agent) == []


@pytest.mark.django_db(transaction=True)
def test_the_heartbeat_cache_does_not_hide_a_second_host(
    world: World, source: FakeSource, heartbeats_cached: bool
) -> None:
    agent = world.enroll()
    for start in ("a", "a", "b", "b", "a", "a", "b", "b", "a", "a"):
        beats(agent, start)
        heartbeat_cache.flush_last_seen()
    assert codes(world, agent) == ["two_hosts"]


@pytest.mark.parametrize("value", [7, "x" * 65, "a\nb", {}])
def test_what_is_no_start_id_is_refused(world: World, source: FakeSource, value: object) -> None:
    assert world.enroll().beat(start_id=value).status_code == 400


def test_a_silent_agent_is_named_with_the_time_it_was_last_seen(world: World, source: FakeSource) -> None:
    never, silent, well = (world.enroll() for _ in range(3))
    silent.beat()
    Agent.objects.filter(pk=silent.id).update(last_seen_at=clock.now() - dt.timedelta(hours=2))
    well.beat()
    rows = Agent.objects.filter(pk__in=[never.id, silent.id, well.id]).order_by("pk")
    found = warnings_about(rows, clock.now())
    assert [(str(w.agent_id), w.code) for w in found] == [(never.id, "silent"), (silent.id, "silent")]
    assert "never seen" in found[0].detail
    assert "last seen 20" in found[1].detail


def test_the_page_of_an_agent_shows_its_warnings(world: World, source: FakeSource) -> None:
    answer = enroll_host(world, "vm")
    enroll_host(world, "vm")
    agent = EnrolledAgent(world, answer["agent_id"], answer["api_key"])
    beats(agent, "a", "b", "a", "b", "a")
    page = world.signed_in("vera").raw("GET", f"/admin/agents/agent/{agent.id}/change/", b"").content.decode()
    assert "Two processes report under this identity" in page
    assert "Another agent in this environment has this host name: vm-2 (never seen)" in page
