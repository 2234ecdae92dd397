"""The whole road, in process: from a request to what hosts run that verify every byte for themselves."""

from __future__ import annotations

import datetime as dt
import hashlib

import pytest
import time_machine

from apps.agents.models import Agent
from apps.audit.models import AuditEvent
from apps.blobs.models import StoredBlob
from apps.core import clock
from apps.deployments.models import DeploymentEvent
from tests.deployments.world import World

pytestmark = pytest.mark.django_db


def test_from_request_to_active_on_two_agents_superseded_and_taken_back(staging: World) -> None:
    world = staging
    first = world.request(world.bundle("email:drop"), reason="first")
    assert world.status(first) == "pending_approval"
    assert world.show(first)["targets"] == {
        "total": 2,
        "pending": 2,
        "assigned": 0,
        "fetched": 0,
        "verified": 0,
        "activated": 0,
        "failed": 0,
        "rolled_back": 0,
        "unreachable": 0,
    }
    assert [host.step() for host in world.hosts] == ["none", "none"]
    assert world.decide(first).status_code == 200
    assert world.status(first) == "approved"
    world.work()
    shown = world.show(first)
    assert shown["status"] == "deploying"
    assert shown["targets"]["assigned"] == 2
    assert [host.step() for host in world.hosts] == ["activate", "activate"]
    shown = world.show(first)
    assert shown["status"] == "active"
    assert shown["targets"]["activated"] == 2
    assert {host.runs for host in world.hosts} == {first}
    assert world.current() == first
    for host in world.hosts:
        running = world.bob.get(f"{world.path}/agents/{host.id}").json()["running"]
        assert running == {
            "deployment_id": first,
            "bundle_sha256": shown["bundle_sha256"],
            "sequence": shown["sequence"],
        }

    second = world.request(world.bundle("email:hash"), reason="second")
    assert world.decide(second).status_code == 200
    world.work()
    world.hosts[0].step()
    assert world.show(first)["superseded_by"] is None
    assert world.current() == first
    world.hosts[1].step()
    assert world.status(second) == "active"
    assert world.show(first)["status"] == "active"
    assert world.show(first)["superseded_by"] == second
    assert world.current() == second
    assert {t["previous_deployment_id"] for t in world.targets(second).values()} == {first}

    answer = world.act(second, "rollback", body={"reason": "worse"})
    assert answer.status_code == 200
    assert answer.json()["status"] == "rolling_back"
    assert [host.step() for host in world.hosts] == ["rollback", "rollback"]
    assert world.status(second) == "rolled_back"
    assert {host.runs for host in world.hosts} == {first}
    assert world.show(first)["superseded_by"] is None
    assert world.current() == first
    for agent in Agent.objects.filter(environment=world.env):
        assert str(agent.running_deployment_id) == first
    assert world.moves(second) == [
        (None, "pending_approval", "requested"),
        ("pending_approval", "approved", "approval_granted"),
        ("approved", "building", "build_started"),
        ("building", "deploying", "assigned"),
        ("deploying", "active", "targets_settled"),
        ("active", "rolling_back", "rollback_requested"),
        ("rolling_back", "rolled_back", "rollback_confirmed"),
    ]
    audited = AuditEvent.objects.filter(target=f"deployment:{second}").order_by("seq")
    assert [e.action for e in audited] == [
        "deployment.requested",
        "deployment.approved",
        "deployment.building",
        "deployment.deploying",
        "deployment.active",
        "deployment.rolling_back",
        "deployment.rolled_back",
    ]
    recorded = DeploymentEvent.objects.filter(deployment_id=second).order_by("pk")
    assert [e.details for e in audited] == [
        {"from": e.from_status, "to": e.to_status, "trigger": e.trigger, "reason": e.reason} for e in recorded
    ]
    assert recorded[5].reason == "worse"


def test_a_transition_is_the_last_change(world: World) -> None:
    made = world.request()
    at = clock.now() + dt.timedelta(minutes=1)
    with time_machine.travel(at, tick=False):
        assert world.act(made, "cancel").status_code == 200
    row = world.row(made)
    assert (row.updated_at, row.settled_at) == (at, at)


def test_where_the_policy_needs_no_approval_it_approves_itself_and_is_recorded(world: World) -> None:
    made = world.request()
    assert world.moves(made)[:2] == [
        (None, "pending_approval", "requested"),
        ("pending_approval", "approved", "policy"),
    ]
    assert world.approval(made)["status"] == "approved"
    assert world.builds() == [made]


def test_the_archive_is_stored_under_its_digest_and_handed_to_targets_alone(world: World) -> None:
    one, other = world.hosts
    (stranger,) = world.enroll(1, at=world.tenant.path(world.tenant.staging))
    made = world.roll_out(targets=[one])
    blob = StoredBlob.objects.get()
    assert blob.sha256 == world.show(made)["bundle_sha256"]
    path = f"/agents/{one.id}/deployments/{made}/bundle"
    data = b"".join(one.http.get(path).streaming_content)
    assert hashlib.sha256(data).hexdigest() == blob.sha256
    assert len(data) == blob.size
    for host in (other, stranger):
        assert host.http.get(f"/agents/{host.id}/deployments/{made}/bundle").status_code == 404
        assert host.http.get(path).status_code == 404


def test_a_bundle_is_not_handed_out_before_it_is_assigned(world: World) -> None:
    made = world.request()
    host = world.hosts[0]
    assert host.http.get(f"/agents/{host.id}/deployments/{made}/bundle").status_code == 404


def test_a_host_that_lost_everything_but_its_key_heals(world: World) -> None:
    made = world.roll_out()
    host = world.hosts[0]
    host.running = None
    assert host.step() == "activate"
    assert host.runs == made
    assert world.status(made) == "active"
    assert [status for *_, status in host.reported] == [200] * 6


def test_a_later_deployment_to_one_agent_leaves_the_other_where_it_was(world: World) -> None:
    one, other = world.hosts
    first = world.roll_out(world.bundle("email:drop"))
    second = world.roll_out(world.bundle("email:hash"), [one])
    assert (one.runs, other.runs) == (second, first)
    assert world.show(first)["superseded_by"] is None
    assert world.current() == second
    third = world.roll_out(world.bundle("email:mask=1:1:x"), [other])
    assert world.show(first)["superseded_by"] == third
    assert world.show(second)["superseded_by"] is None
    assert world.current() == third


@pytest.mark.parametrize("last_digits", [0, 1])
def test_every_later_build_has_a_higher_sequence_whatever_the_clock_shows(world: World, last_digits: int) -> None:
    first = world.roll_out(world.bundle("email:drop"))
    past = dt.datetime.now(tz=dt.UTC) - dt.timedelta(minutes=last_digits)
    with time_machine.travel(past, tick=False):
        second = world.request(world.bundle("email:hash"))
        world.work()
        assert world.show(second)["sequence"] > world.show(first)["sequence"]
