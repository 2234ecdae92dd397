"""Long random walks over everything people and hosts can do, with what must always hold afterwards."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable
from typing import Any

import pytest
import time_machine

from apps.agents.models import Agent
from apps.core import clock
from apps.deployments import selectors
from apps.deployments.models import Deployment, Target
from apps.deployments.selectors import assignment_history
from apps.deployments.services import end_due_bakes
from tests import invariants
from tests.deployments.world import World

pytestmark = pytest.mark.django_db

FINISHED = {"denied", "active", "failed", "rolled_back"}


def check(world: World) -> None:
    """What holds once every host has carried out its directive."""
    for host in world.hosts:
        directive = host.heartbeat()
        assert host.runs == directive.deployment_id
        agent = world.bob.get(f"{world.path}/agents/{host.id}").json()
        assert (agent["running"] or {}).get("deployment_id") == host.runs
        together = selectors.desired_of_each([host.pk])
        alone = selectors.desired(Agent.objects.get(pk=host.pk))
        assert together.get(host.pk, alone) == alone
        assert (host.pk in together) == (alone.directive in ("activate", "none"))
        confirmed = [a.deployment_id for a in assignment_history(host.pk) if a.activated and a.rolling_back_at is None]
        if directive.directive == "rollback":
            assert host.runs in {str(pk) for pk in confirmed}
    ran = {host.runs for host in world.hosts}
    current = None
    for deployment in Deployment.objects.filter(environment=world.env).order_by("sequence"):
        assert deployment.status in FINISHED, deployment.status
        if deployment.status == "active":
            # one whose few targets all failed within what it tolerates is active nowhere: there is nothing to take over
            if Target.objects.filter(deployment=deployment, status="activated").exists():
                assert (deployment.superseded_by is None) == (str(deployment.pk) in ran), deployment.pk
            if deployment.superseded_by is None:
                current = str(deployment.pk)
    assert world.current() == current
    invariants.check(at_rest=True)


def strategy(choose: random.Random) -> dict[str, Any]:
    """Any strategy: phased ones bake for a second or not at all."""
    common = {"max_failures": choose.randint(0, 1), "auto_rollback": choose.random() < 0.4}
    if choose.random() < 0.5:
        return {"type": "all_at_once", **common}
    percents = [*sorted(choose.sample(range(1, 100), choose.randint(0, 2))), 100]
    phases = [{"percent": percent, "bake_seconds": choose.randint(0, 1)} for percent in percents]
    return {"type": "phased", "phases": phases, **common}


@pytest.mark.parametrize("seed", range(2))
def test_end_in_one_consistent_state(world: World, seed: int) -> None:
    with time_machine.travel(dt.datetime.now(dt.UTC), tick=True) as clocks:
        wander(world, random.Random(seed), lambda: clocks.shift(dt.timedelta(seconds=1)))


def wander(world: World, choose: random.Random, time_passes: Callable[[], None]) -> None:
    world.enroll(1)
    made: list[str] = []

    def until_all_is_done() -> None:
        for _ in range(8):
            world.work()
            world.settle()
            time_passes()
            end_due_bakes(clock.now())
            if not Deployment.objects.filter(environment=world.env).in_flight().exists():
                break
        world.settle()

    for number in range(14):
        action = choose.choice(["deploy", "deploy", "rollback", "cancel", "again"])
        if action == "deploy" or not made:
            targets = choose.sample(world.hosts, choose.randint(1, 3))
            made.append(world.request(world.bundle(f"f{number}:drop"), targets, strategy=strategy(choose)))
            world.work()
            if choose.random() < 0.2:
                world.act(made[-1], choose.choice(["cancel", "rollback"]))
        elif action == "rollback":
            assert world.act(choose.choice(made), "rollback").status_code in (200, 409)
        elif action == "cancel":
            assert world.act(choose.choice(made), "cancel").status_code in (200, 409)
        for host in choose.sample(world.hosts, 3):
            host.step(fail=action == "deploy" and choose.random() < 0.25)
        if choose.random() < 0.3:
            choose.choice(world.hosts).heartbeat({"ok": False, "detail": "it leaks"})
        if made and choose.random() < 0.1:
            world.act(made[-1], "cancel")
        until_all_is_done()
        for stuck in Deployment.objects.filter(environment=world.env, status="failed", rolling_back_at__isnull=False):
            world.act(str(stuck.pk), "rollback")
            world.settle()
        check(world)
