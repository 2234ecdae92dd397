"""A pipeline with an op that is newer than a target's agent: the person who asks and the reviewer are warned."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from apps.agents.models import Agent
from apps.deployments.compatibility import warnings_of
from apps.deployments.models import ConfigBundle, Deployment
from apps.runtime import agent as served
from apps.runtime.ops import KINDS
from apps.runtime.ops.rules import ACTIONS, Action
from tests.deployments.world import World
from tests.runtime.making import acting
from tests.runtime.scratch_op import SCRATCH

pytestmark = pytest.mark.django_db
NEWER = SCRATCH.since  # 9.0.0


@pytest.fixture
def newer_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control plane that serves the agent 9.0.0, which knows an op and an action of rules more than those before."""
    monkeypatch.setattr(served, "VERSION", NEWER)
    monkeypatch.setitem(KINDS, SCRATCH.name, SCRATCH)
    monkeypatch.setitem(ACTIONS, "shout", Action("shout", "louder", "shout", NEWER, lambda _: lambda value: value))


def scratch_bundle(world: World) -> str:
    version = world.version(acting("identity", SCRATCH.name))
    body = {"version_id": version, "config": {"stages": {"s1": {"keep": ["id"]}}}}
    answer = world.bob.post(f"{world.path}/bundles", body)
    assert answer.status_code == 201, answer.content
    return str(answer.json()["id"])


def has_version(world: World, *versions: str) -> None:
    for host, version in zip(world.hosts, versions, strict=True):
        Agent.objects.filter(pk=host.id).update(version=version)


def asked(world: World, bundle: str) -> Any:
    answer = world.ask(bundle)
    assert answer.status_code == 201, answer.content
    return answer.json()


@pytest.mark.usefixtures("newer_server")
@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("0.2.0", "It runs version 0.2.0 of the agent; the op scratch_keep needs 9.0.0 or newer."),
        ("8.99.99", "It runs version 8.99.99 of the agent; the op scratch_keep needs 9.0.0 or newer."),
        ("", "It has reported no version of its agent; the op scratch_keep needs 9.0.0 or newer."),
        ("nightly", "It has reported no version of its agent; the op scratch_keep needs 9.0.0 or newer."),
    ],
)
def test_who_asks_is_warned_of_agents_that_do_not_know_an_op(world: World, version: str, words: str) -> None:
    has_version(world, version, "9.0.0")
    old, _ = world.hosts
    body = asked(world, scratch_bundle(world))
    (warning,) = body["warnings"]
    assert (warning["code"], warning["agent_id"]) == ("agent_too_old", old.id)
    assert warning["agent_name"] == Agent.objects.get(pk=old.id).name
    assert warning["detail"].startswith(words)
    # it is asked for all the same: the host may take a newer agent before
    assert Deployment.objects.get(pk=body["id"]).status == "approved"
    assert {**world.show(body["id"]), "warnings": body["warnings"]} == body


@pytest.mark.usefixtures("newer_server")
def test_there_is_no_warning_where_every_agent_knows_every_op_of_the_pipeline(world: World) -> None:
    has_version(world, "9.0.0", "10.0.0")
    assert asked(world, scratch_bundle(world))["warnings"] == []


@pytest.mark.usefixtures("newer_server")
def test_there_is_no_warning_for_a_newer_op_that_is_not_in_the_pipeline(world: World) -> None:
    has_version(world, "0.1.0", "")
    assert asked(world, world.bundle())["warnings"] == []


@pytest.mark.usefixtures("newer_server")
def test_an_action_of_a_rule_may_be_what_an_agent_does_not_know(world: World) -> None:
    has_version(world, "0.3.0", "9.0.0")
    (warning,) = asked(world, world.bundle("email:shout"))["warnings"]
    assert warning["agent_id"] == world.hosts[0].id
    assert "the action shout of a rule needs 9.0.0 or newer" in warning["detail"]


def test_the_ops_of_today_are_held_against_the_version_that_brought_them(world: World) -> None:
    has_version(world, "0.1.9", "0.2.0")
    version = world.version(acting("exec:/bin/cat"))
    bundle = world.bob.post(f"{world.path}/bundles", {"version_id": version, "config": {}}).json()["id"]
    assert [w["agent_id"] for w in asked(world, bundle)["warnings"]] == [world.hosts[0].id]


@pytest.mark.usefixtures("newer_server")
def test_of_many_old_agents_fifty_are_named_and_the_rest_counted(world: World) -> None:
    Agent.objects.bulk_create(Agent(environment=world.env, name=f"old-{n:03}") for n in range(60))
    found = asked(world, scratch_bundle(world))["warnings"]
    assert len(found) == 51
    assert found[-1] == {
        "code": "agent_too_old", "agent_id": None, "agent_name": "", "detail": "The same applies to 12 more agents.",
    }  # fmt: skip


@pytest.mark.usefixtures("newer_server")
def test_the_reviewer_sees_it_on_the_approvals_page(staging: World) -> None:
    has_version(staging, "0.2.0", "9.0.0")
    body = asked(staging, scratch_bundle(staging))
    client = Client()
    client.force_login(staging.tenant.people["carol"])
    url = reverse("admin:approvals_approval_change", args=[body["approval_id"]])
    page = client.get(url).content.decode()
    assert page.count('data-warning="agent_too_old"') == 1
    assert "the op scratch_keep needs 9.0.0 or newer" in page
    has_version(staging, "9.0.0", "9.0.0")
    assert "agent_too_old" not in client.get(url).content.decode()


def test_a_version_that_only_a_newer_server_understands_gets_no_bundle_and_warns_of_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_version(world, "0.2.0", "0.2.0")
    with monkeypatch.context() as newer:
        newer.setitem(KINDS, SCRATCH.name, SCRATCH)
        bundle = scratch_bundle(world)
    version = str(ConfigBundle.objects.get(pk=bundle).version_id)
    answer = world.bob.post(f"{world.path}/bundles", {"version_id": version, "config": {}})
    assert answer.status_code == 422
    assert answer.json()["code"] == "spec_not_understood"
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/version_id"]
    assert ConfigBundle.objects.count() == 1
    assert asked(world, bundle)["warnings"] == []


def test_asking_costs_the_two_reads_of_targets_and_agents_alone_where_all_are_new(
    world: World, django_assert_num_queries: Any
) -> None:
    has_version(world, "9.0.0", "9.0.0")
    deployment = Deployment.objects.get(pk=world.request(world.bundle()))
    with django_assert_num_queries(1 + 1):
        assert warnings_of(deployment) == []
