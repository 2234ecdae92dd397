"""Whatever is done to one deployment, all others stay exactly as they were: in the same environment and in others."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest
import time_machine
from django.db import models

from apps.approvals.models import Approval, ApprovalEvent, Decision
from apps.approvals.services import expire_due, notify_expired_credentials
from apps.core import clock
from apps.deployments.models import Confirmation, Deployment, DeploymentEvent, PhaseEvent, Target
from apps.deployments.services import end_due_bakes, time_out_silent_targets
from apps.jobs.models import Job
from tests.deployments.world import World
from tests.support import Tenant

pytestmark = pytest.mark.django_db


def rows_of(deployments: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Every row of these deployments, by model."""
    ids = [uuid.UUID(each) for each in deployments]
    of_deployments: list[models.QuerySet[Any]] = [
        Deployment.objects.filter(pk__in=ids),
        *(model._default_manager.filter(deployment__in=ids) for model in (Target, DeploymentEvent, PhaseEvent)),
        *(model._default_manager.filter(deployment_id__in=ids) for model in (Approval, Confirmation)),
        *(model._default_manager.filter(approval__deployment_id__in=ids) for model in (ApprovalEvent, Decision)),
        Job.objects.filter(subject_id__in=ids),
    ]
    return {rows.model.__name__: list(rows.order_by("pk").values()) for rows in of_deployments}


class Bystanders:
    """A deployment that is being delivered in staging, one that is active there, one that waits for its approval, and one that
    is being delivered in another organization."""

    def __init__(self, staging: World) -> None:
        self.world = staging
        tenant = staging.tenant
        delivering, active, waiting = staging.enroll(3)
        elsewhere = World(tenant, tenant.other_environment, callers={"bob": tenant.caller("charlie")})
        elsewhere.enroll(1)
        self.deployments = [staging.request(staging.bundle("other1:drop"), [delivering])]
        assert staging.decide(self.deployments[0]).status_code == 200
        self.deployments.append(staging.roll_out_approved(staging.bundle("other2:drop"), [active]))
        self.deployments += [staging.request(staging.bundle("other3:drop"), [waiting]), elsewhere.request()]
        staging.work()
        assert [each.status for each in map(staging.row, self.deployments)] == [
            "deploying",
            "active",
            "pending_approval",
            "deploying",
        ]
        self.before = rows_of(self.deployments)

    def unchanged(self) -> bool:
        after = rows_of(self.deployments)
        assert after == self.before
        return True


@pytest.fixture
def others(staging: World) -> Bystanders:
    made = Bystanders(staging)
    staging.hosts = staging.hosts[:2]
    return made


def later(**time: int) -> Any:
    return time_machine.travel(clock.now() + dt.timedelta(**time), tick=True)


def approved(world: World, rule: str, **more: Any) -> str:
    made = world.request(world.bundle(f"{rule}:drop"), world.hosts, **more)
    assert world.decide(made).status_code == 200
    return made


def test_what_ends_before_a_build_ends_alone(others: Bystanders) -> None:
    world = others.world
    for number, verb in enumerate(("deny", "revoke", "cancel")):
        made = world.request(world.bundle(f"f{number}:drop"), world.hosts)
        if verb == "cancel":
            assert world.act(made, "cancel").status_code == 200
        else:
            who = "carol" if verb == "deny" else "bob"
            assert world.decide(made, verb, who).status_code == 200
        assert (world.status(made), others.unchanged()) == ("denied", True), verb
    made = approved(world, "revoked")
    assert world.decide(made, "revoke").status_code == 200
    assert (world.status(made), others.unchanged()) == ("denied", True)


def test_what_is_delivered_and_taken_back_is_taken_back_alone(others: Bystanders) -> None:
    world = others.world
    one, other = world.hosts
    first = world.roll_out_approved(world.bundle("a:drop"), world.hosts)
    assert others.unchanged()
    second = approved(world, "b")
    world.work()
    one.step()
    assert others.unchanged()
    assert world.act(second, "rollback").status_code == 200
    assert others.unchanged()
    world.settle()
    assert (world.status(second), world.status(first), others.unchanged()) == ("rolled_back", "active", True)
    third = approved(world, "c", strategy={"type": "all_at_once", "auto_rollback": True})
    world.work()
    one.step()
    other.step(fail=True)
    assert others.unchanged()
    world.settle()
    assert (world.status(third), others.unchanged()) == ("rolled_back", True)
    assert world.act(first, "rollback").status_code == 200
    world.settle()
    assert (world.status(first), others.unchanged()) == ("rolled_back", True)
    assert world.bob.delete(f"{world.path}/agents/{one.id}").status_code == 204
    assert others.unchanged()


def test_the_phases_of_one_rollout_are_its_own(others: Bystanders) -> None:
    world = others.world
    phases = [{"percent": 50, "bake_seconds": 5}, {"percent": 100, "bake_seconds": 0}]
    made = approved(world, "a", strategy={"type": "phased", "phases": phases})
    world.work()
    world.hosts[0].step()
    with later(seconds=6):
        assert end_due_bakes(clock.now()) == 1
        world.hosts[1].step()
    assert (world.status(made), others.unchanged()) == ("active", True)


@pytest.mark.parametrize("what", ["silence", "an approval's window", "a credential"])
def test_the_time_of_one_ends_that_one_alone(tenant: Tenant, staging: World, what: str) -> None:
    """What ends by time is much older than the others."""
    with time_machine.travel(clock.now() - dt.timedelta(hours=23), tick=True):
        made = staging.request(staging.bundle("old:drop"), staging.hosts, timeout_seconds=600)
        if what != "an approval's window":
            assert staging.decide(made).status_code == 200
        if what == "silence":
            staging.work()
        Job.objects.filter(subject_id=made, status="queued").update(run_at=clock.now() + dt.timedelta(days=2))
    mine, staging.hosts = staging.hosts, []
    others = Bystanders(staging)
    if what == "an approval's window":
        with later(hours=1, minutes=1):
            assert expire_due(clock.now()) == 1
    elif what == "a credential":
        assert notify_expired_credentials(clock.now()) == 1
    else:
        assert time_out_silent_targets(clock.now()) == len(mine)
    assert (staging.status(made), others.unchanged()) == (
        "denied" if what == "an approval's window" else "failed",
        True,
    )
