"""`agent_upgrade_percent` limits how many agents of a fleet upgrade."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from apps.agents.models import Agent
from apps.agents.services import allow_upgrade
from apps.core.actors import SYSTEM_ACTOR
from apps.core.errors import Forbidden
from apps.runtime.agent import VERSION
from apps.tenancy import services as tenancy
from apps.tenancy.models import Environment

from .conftest import EnrolledAgent, FakeSource, World

pytestmark = pytest.mark.django_db


def set_percent(world: World, percent: int) -> Any:
    return world.alice.patch(world.env, {"agent_upgrade_percent": percent})


def fleet(world: World, size: int) -> list[EnrolledAgent]:
    """Agents in the order of their ids, all upgradable (they asked while the percentage was 0)."""
    agents = sorted((world.enroll() for _ in range(size)), key=lambda agent: agent.id)
    assert {agent.get("release").status_code for agent in agents} == {204}
    return agents


def offered(agents: list[EnrolledAgent]) -> list[bool]:
    return [agent.get("release").status_code == 200 for agent in agents]


def test_a_new_environment_offers_its_agents_nothing(world: World, source: FakeSource) -> None:
    agent = world.enroll()
    assert world.alice.get(world.env).json()["agent_upgrade_percent"] == 0
    assert agent.get("release").status_code == 204
    assert agent.get("release/byteor-agent.pyz").status_code == 404


@pytest.mark.postgres
@pytest.mark.parametrize(("percent", "first"), [(1, 1), (25, 1), (26, 2), (50, 2), (99, 4), (100, 4)])
def test_the_first_share_in_order_of_enrollment_is_let_through(
    world: World, source: FakeSource, percent: int, first: int
) -> None:
    agents = fleet(world, 4)
    assert set_percent(world, percent).status_code == 200
    assert offered(agents) == [index < first for index in range(4)]
    assert agents[0].get("release/byteor-agent.pyz").status_code == 200


def test_raising_it_keeps_the_allowed_agents_and_lowering_it_revokes_none(world: World, source: FakeSource) -> None:
    agents = fleet(world, 4)
    set_percent(world, 25)
    assert offered(agents) == [True, False, False, False]
    set_percent(world, 75)
    assert offered(agents) == [True, True, True, False]
    set_percent(world, 0)
    assert offered(agents) == [True, True, True, False]


def test_agents_that_ask_in_the_wrong_order_are_never_more_than_the_share(world: World, source: FakeSource) -> None:
    set_percent(world, 10)
    agents = sorted((world.enroll() for _ in range(8)), key=lambda agent: agent.id, reverse=True)
    assert sum(offered(agents)) == 1
    assert sum(offered(agents)) == 1


def test_another_version_is_judged_anew(world: World, source: FakeSource) -> None:
    agents = fleet(world, 2)
    set_percent(world, 100)
    assert offered(agents) == [True, True]
    set_percent(world, 0)
    row = Agent.objects.select_related("environment").get(pk=agents[0].id)
    assert allow_upgrade(agent=row, version=VERSION)
    assert not allow_upgrade(agent=row, version=VERSION + ".1")


def test_hosts_that_take_no_upgrades_hold_no_place(world: World, source: FakeSource) -> None:
    for _ in range(3):
        world.enroll()
    last = world.enroll()
    last.get("release")
    set_percent(world, 1)
    assert last.get("release").status_code == 200
    Agent.objects.update(upgrade_allowed_version="", upgrade_asked_at=None)
    Agent.objects.exclude(pk=last.id).update(
        upgrade_asked_at=Agent.objects.get(pk=last.id).created_at - dt.timedelta(days=2)
    )
    assert last.get("release").status_code == 200


def test_raising_it_needs_a_person_and_is_recorded(world: World, source: FakeSource) -> None:
    environment = Environment.objects.select_related("project__organization").get(pk=world.environment.pk)
    with pytest.raises(Forbidden, match="Only a person") as refused:
        tenancy.update_node(actor=SYSTEM_ACTOR, node=environment, agent_upgrade_percent=10)
    assert refused.value.code == "person_required"
    with pytest.raises(Forbidden):
        tenancy.create_environment(
            actor=SYSTEM_ACTOR, project=environment.project, name="qa", posture="dev", agent_upgrade_percent=1
        )
    assert set_percent(world, 10).status_code == 200
    tenancy.update_node(actor=SYSTEM_ACTOR, node=environment, agent_upgrade_percent=5)
    from apps.audit.models import AuditEvent

    changes = [
        event.details["after"]["agent_upgrade_percent"]
        for event in AuditEvent.objects.filter(action="environment.updated").order_by("seq")
    ]
    assert changes == [10, 5]


@pytest.mark.parametrize("value", [-1, 101, "10", 1.5, None, True])
def test_what_is_no_percentage_is_refused(world: World, source: FakeSource, value: object) -> None:
    answer = world.alice.call("PUT", world.env, {"name": "dev", "posture": "dev", "agent_upgrade_percent": value})
    assert answer.status_code == 400, answer.content
    assert answer.json()["errors"][0]["pointer"] == "/agent_upgrade_percent"


def test_operators_and_viewers_change_no_share(world: World, source: FakeSource) -> None:
    for caller, status in ((world.bob, 403), (world.vera, 403), (world.charlie, 404)):
        assert caller.patch(world.env, {"agent_upgrade_percent": 100}).status_code == status


@pytest.mark.postgres
def test_of_many_that_ask_at_once_the_share_is_let_through(
    transactional_db: None, world: World, source: FakeSource
) -> None:
    agents = fleet(world, 6)
    set_percent(world, 50)
    world.at_once([lambda agent=agent: agent.get("release") for agent in agents])
    allowed = Agent.objects.filter(upgrade_allowed_version=VERSION).order_by("pk").values_list("pk", flat=True)
    assert [str(pk) for pk in allowed] == [agent.id for agent in agents[:3]]
