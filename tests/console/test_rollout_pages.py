"""What people are shown of a phased rollout: before they decide, and while it goes on."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from apps.console.rollout import duration
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


def test_a_reviewer_sees_how_far_it_may_reach_and_when_it_stops(world: World) -> None:
    made = world.request(targets=world.hosts[:4], strategy=STRATEGY, timeout_seconds=90)
    page = shown(world, "approvals_approval_change", world.row(made).approval_id)
    assert "1 agent in the first phase, then 4 of the environment&#x27;s 5 phase by phase" in page
    assert "as soon as more than 1 fail or stay silent for 1 min 30 s, and rolls back automatically" in page
    cells = r'<tr data-phase="(\d)">\s*<td>\d</td>\s*<td>(\d+) %</td>\s*<td>(\d+)</td>\s*<td>([^<]+)</td>'
    rows = re.findall(cells, page)
    assert rows == [("1", "25", "1", "1 min 30 s"), ("2", "100", "3", "none")]


def test_all_at_once_is_stated(world: World) -> None:
    made = world.request(targets=world.hosts[:4])
    page = shown(world, "approvals_approval_change", world.row(made).approval_id)
    assert "4 agents of the environment&#x27;s 5, all at once" in page
    assert "as soon as one fails or stays silent for 10 min, and waits for an operator" in page
    assert "data-phase=" not in page


def test_lengths_of_time_in_words() -> None:
    assert [duration(s) for s in (0, 45, 60, 90, 3600, 5430)] == [
        "0 s",
        "45 s",
        "1 min",
        "1 min 30 s",
        "1 h",
        "1 h 30 min 30 s",
    ]
