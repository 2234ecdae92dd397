"""What people are shown of a phased rollout: before they decide, and while it goes on."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from apps.console.rollout import duration
from apps.core import clock
from apps.deployments.models import Deployment
from tests.deployments.world import World
from tests.support import Tenant

pytestmark = pytest.mark.django_db

STRATEGY = {
    "type": "phased",
    "phases": [{"percent": 25, "bake_seconds": 90}, {"percent": 100, "bake_seconds": 0}],
    "max_failures": 1,
    "auto_rollback": True,
}


@pytest.fixture
def world(tenant: Tenant) -> World:
    world = World(tenant, tenant.staging)
    world.enroll(5)
    return world


def shown(world: World, name: str, pk: Any, who: str = "carol") -> str:
    client = Client()
    client.force_login(world.tenant.people[who])
    answer = client.get(reverse(f"admin:{name}", args=[pk]))
    assert answer.status_code == 200
    return answer.content.decode()


def state(world: World, made: str) -> dict[str, Any]:
    client = Client()
    client.force_login(world.tenant.people["carol"])
    return dict(client.get(reverse("admin:deployments_deployment_state", args=[made])).json())


def test_a_reviewer_sees_how_far_it_may_reach_and_when_it_stops(world: World) -> None:
    made = world.request(targets=world.hosts[:4], strategy=STRATEGY, timeout_seconds=90)
    page = shown(world, "approvals_approval_change", world.row(made).approval_id)
    assert "1 agent in the first phase, then 4 of the environment&#x27;s 5 step by step" in page
    assert "as soon as more than 1 fail or stay silent for 1 min 30 s, and goes back by itself" in page
    rows = re.findall(r'<tr data-phase="(\d)"><td>\d</td><td>(\d+) %</td><td>(\d+)</td><td>([^<]+)</td>', page)
    assert rows == [("1", "25", "1", "1 min 30 s"), ("2", "100", "3", "none")]


def test_all_at_once_says_so(world: World) -> None:
    made = world.request(targets=world.hosts[:4])
    page = shown(world, "approvals_approval_change", world.row(made).approval_id)
    assert "4 agents of the environment&#x27;s 5, all at once" in page
    assert "as soon as one fails or stays silent for 10 min, and waits for somebody to act" in page
    assert "data-phase=" not in page


def test_the_deployment_page_and_what_it_polls_say_where_it_is(world: World) -> None:
    made = world.request(targets=world.hosts[:4], strategy=STRATEGY)
    assert [p["status"] for p in state(world, made)["phases"]] == ["waiting", "waiting"]
    world.decide(made)
    world.work()
    world.hosts[0].step()
    phases = state(world, made)["phases"]
    assert [(p["status"], p["counts"]) for p in phases] == [("baking", "1 activated"), ("waiting", "3 pending")]
    row: Deployment = world.row(made)
    assert phases[0]["when"] == clock.rfc3339(row.bake_ends_at)
    page = shown(world, "deployments_deployment_change", made)
    assert "Phase 1" in page
    assert "pill-baking" in page
    # what can be done in a bake is offered
    operator = shown(world, "deployments_deployment_change", made, who="bob")
    assert 'value="cancel"' in operator
    assert 'value="rollback"' in operator


def test_lengths_of_time_in_words() -> None:
    assert [duration(s) for s in (0, 45, 60, 90, 3600, 5430)] == [
        "0 s",
        "45 s",
        "1 min",
        "1 min 30 s",
        "1 h",
        "1 h 30 min 30 s",
    ]
