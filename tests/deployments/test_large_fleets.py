"""PostgreSQL takes 65,535 parameters in a statement: what a statement names does not grow with the fleet."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import time_machine
from django.db import connection, transaction

from apps.agents import selectors as agents
from apps.agents.models import Agent
from apps.agents.registry import Desired
from apps.agents.services import note_assigned
from apps.core import clock, db
from apps.core.ids import new_id
from apps.deployments import selectors
from apps.deployments.compatibility import warnings_of
from apps.deployments.models import Target, TargetStatus
from apps.deployments.services import end_due_bakes, time_out_silent_targets
from apps.deployments.services.progress import apply_target_progress
from tests.deployments.world import World

pytestmark = pytest.mark.django_db

FLEET = 60
NAMED_AT_ONCE = 20
OTHERS = 20
"""Parameters of a statement besides the agents or targets that it names."""


@contextmanager
def few_parameters(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No statement has more parameters than `NAMED_AT_ONCE` and `OTHERS`. Django itself divides bulk inserts."""
    monkeypatch.setattr(db, "MOST_PARAMETERS", NAMED_AT_ONCE)
    monkeypatch.setattr(selectors, "_NAMED_AGENTS", NAMED_AT_ONCE)
    longest: list[tuple[int, str]] = []

    def count(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if not sql.startswith("INSERT"):
            longest.append((len(params or ()), sql))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(count):
        yield
    number, sql = max(longest)
    assert number <= NAMED_AT_ONCE + OTHERS, sql


def add_fleet(world: World) -> None:
    """Agents that were seen now, each of a host name of its own."""
    Agent.objects.bulk_create(
        Agent(environment=world.env, name=f"host-{n}", hostname=f"host-{n}", version="0.1.0", last_seen_at=clock.now())
        for n in range(FLEET)
    )


def test_no_statement_of_a_deployment_names_each_agent_of_a_large_fleet(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_fleet(world)
    bundle = world.bundle()
    with few_parameters(monkeypatch):
        made = world.request(bundle, timeout_seconds=60)
        assert world.ask(bundle).json()["code"] == "bundle_in_flight"
        world.work()
        targets = world.show(made)["targets"]
        assert targets["assigned"] == targets["total"] > FLEET
        agents.warnings_about(agents.for_warnings(Agent.objects.values_list("pk", flat=True)), clock.now())
        warnings_of(world.row(made))
        with time_machine.travel(clock.now() + dt.timedelta(seconds=61), tick=True):
            assert time_out_silent_targets(clock.now()) == targets["total"]
            assert world.status(made) == "failed"
            assert world.act(made, "rollback").status_code == 200
        assert world.status(made) == "rolled_back"
    assert world.show(made)["targets"]["rolled_back"] == targets["total"]


@pytest.mark.parametrize("trouble", [{"healthy": False}, {"last_seen_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)}])
def test_no_statement_at_the_end_of_a_bake_names_each_agent_of_a_large_fleet(
    world: World, monkeypatch: pytest.MonkeyPatch, trouble: dict[str, object]
) -> None:
    add_fleet(world)
    strategy = {"type": "phased", "phases": [{"percent": 100, "bake_seconds": 30}]}
    made = world.request(strategy=strategy, timeout_seconds=60)
    world.work()
    Target.objects.update(status=TargetStatus.ACTIVATED, settled_at=clock.now())
    with transaction.atomic():
        apply_target_progress(world.row(made))
    assert world.row(made).bake_ends_at is not None
    Agent.objects.update(**trouble)
    with few_parameters(monkeypatch), time_machine.travel(clock.now() + dt.timedelta(seconds=91), tick=True):
        end_due_bakes(clock.now())
    assert world.status(made) == "failed"
    assert not Target.objects.filter(status=TargetStatus.ACTIVATED).exists()


def test_more_agents_than_parameters_of_a_statement_can_be_named(world: World) -> None:
    known = list(Agent.objects.values_list("pk", flat=True))
    ids = [*known, *(new_id() for _ in range(65_536))]
    note_assigned(ids, Desired("none"), sequence=7)
    assert set(Agent.objects.values_list("highest_assigned_sequence", flat=True)) == {7}
    assert [agent.pk for agent in agents.for_warnings(reversed(ids))] == known
    Agent.objects.update(healthy=False, health_detail="full", last_seen_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    assert agents.unhealthy_agents(ids, new_id()) == dict.fromkeys(known, "full")
    assert sorted(agents.offline_agents(ids, clock.now())) == sorted(known)
