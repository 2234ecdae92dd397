"""What an agent's removal and its download of a bundle leave on its targets."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest
import time_machine

from apps.agents.models import Agent
from apps.core.actors import SYSTEM_ACTOR
from apps.deployments.models import Target
from apps.deployments.services.agent_events import record_bundle_download, settle_targets_of_agent
from tests.deployments.world import World

pytestmark = pytest.mark.django_db

START = dt.datetime(2040, 5, 4, 10, 0, tzinfo=dt.UTC)


def target_of(deployment_id: str, host_id: uuid.UUID) -> Target:
    return Target.objects.get(deployment_id=deployment_id, agent_id=host_id)


def delivered(world: World) -> str:
    deployment = str(world.request())
    world.work()
    return deployment


def test_a_download_is_noted_once_on_the_one_target(world: World) -> None:
    deployment = delivered(world)
    first, second = (host.pk for host in world.hosts)
    one = {"agent_id": first, "deployment_id": uuid.UUID(deployment)}
    assert target_of(deployment, first).handed_out_at is None
    with time_machine.travel(START, tick=False):
        assert record_bundle_download(**one) is True
    with time_machine.travel(START + dt.timedelta(hours=1), tick=False):
        assert record_bundle_download(**one) is True
    assert target_of(deployment, first).handed_out_at == START
    assert target_of(deployment, second).handed_out_at is None
    assert record_bundle_download(agent_id=first, deployment_id=uuid.uuid4()) is False


def test_a_target_that_was_settled_as_never_delivered_gets_nothing(world: World) -> None:
    deployment = delivered(world)
    first, second = (host.pk for host in world.hosts)
    rows = Target.objects.filter(deployment_id=deployment)
    rows.update(rollback_at=START)
    rows.filter(agent_id=second).update(handed_out_at=START)
    assert record_bundle_download(agent_id=first, deployment_id=uuid.UUID(deployment)) is False
    assert target_of(deployment, first).handed_out_at is None
    assert record_bundle_download(agent_id=second, deployment_id=uuid.UUID(deployment)) is True


def test_the_target_of_a_removed_agent_fails_and_names_why_and_by_whom(world: World) -> None:
    deployment = delivered(world)
    first, second = (host.pk for host in world.hosts)
    before = target_of(deployment, second)
    with time_machine.travel(START, tick=False):
        settle_targets_of_agent(actor=SYSTEM_ACTOR, agent=Agent.objects.get(pk=first))
    row = target_of(deployment, first)
    assert (row.status, row.settled_at, row.agent_gone_at, row.updated_at) == ("failed", START, START, START)
    assert row.report == {
        "status": "failed",
        "reason": "agent_removed",
        "failure": "agent_removed",
        "by": "system:byteor",
    }
    other = target_of(deployment, second)
    assert (other.agent_gone_at, other.report) == (None, before.report)
    # what was settled before keeps its outcome and the moment
    with time_machine.travel(START + dt.timedelta(hours=1), tick=False):
        settle_targets_of_agent(actor=SYSTEM_ACTOR, agent=Agent.objects.get(pk=first))
    again = target_of(deployment, first)
    assert (again.settled_at, again.agent_gone_at) == (START, START)
