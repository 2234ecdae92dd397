"""The agent that a control plane offers to hosts that take upgrades from it."""

from __future__ import annotations

import hashlib

import pytest
from django.test import Client

from apps.core import clock
from apps.runtime import trust
from apps.runtime.agent import VERSION
from apps.signing import services as signing
from apps.tenancy.models import Environment

from .conftest import EnrolledAgent, FakeSource, World

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _all_may_upgrade(world: World) -> None:
    Environment.objects.update(agent_upgrade_percent=100)


def test_it_is_signed_by_the_organization_and_its_bytes_are_the_ones_that_are_handed_out(
    world: World, source: FakeSource
) -> None:
    agent = world.enroll()
    answer = agent.get("release")
    assert answer.status_code == 200
    assert answer["Cache-Control"] == "no-store"
    keys = signing.trusted_keys(world.organization.pk)
    release = trust.verify_release(answer.json()["envelope"], keys, now_ms=clock.now_ms())
    assert release.version == VERSION
    program = agent.get(release.path.removeprefix("/"))
    assert program.status_code == 200
    assert (len(program.content), hashlib.sha256(program.content).hexdigest()) == (release.size, release.sha256)
    assert program.content == Client().get("/install/byteor-agent.pyz").content


def test_nothing_is_offered_to_a_host_in_the_middle_of_a_rollout(world: World, source: FakeSource) -> None:
    agent = world.enroll()
    source.in_flight = True
    answer = agent.get("release")
    assert (answer.status_code, answer["Retry-After"]) == (204, "60")


def test_another_organization_signs_with_its_own_keys(world: World, source: FakeSource) -> None:
    envelope = world.enroll(foreign=True).get("release").json()["envelope"]
    with pytest.raises(trust.TrustError, match="unknown_key"):
        trust.verify_release(envelope, signing.trusted_keys(world.organization.pk), now_ms=clock.now_ms())


@pytest.mark.parametrize("path", ["release", "release/byteor-agent.pyz"])
def test_only_the_agent_itself_is_answered(world: World, source: FakeSource, path: str) -> None:
    one, other = world.enroll(), world.enroll()
    assert world.vera.get(f"/api/v1/agents/{one.id}/{path}").status_code == 401
    assert EnrolledAgent(world, other.id, one.token).get(path).status_code == 404
