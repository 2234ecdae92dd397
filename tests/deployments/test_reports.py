"""Reports of agents: late, twice, out of order, about what is not theirs."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from apps.agents.models import Agent
from apps.deployments.models import Confirmation, DeploymentEvent, Target
from apps.deployments.services import reports
from tests.deployments.world import Host, World

pytestmark = pytest.mark.django_db


@pytest.fixture
def on_its_way(world: World) -> tuple[World, str, Host, Any]:
    """A first deployment that is assigned, one host, and the directive it was given."""
    made = world.request(world.bundle("a:drop"))
    world.work()
    host = world.hosts[0]
    return world, made, host, host.heartbeat()


def test_only_forward(on_its_way: tuple[World, str, Host, Any]) -> None:
    world, made, host, directive = on_its_way
    for status, shown in (
        ("verified", "verified"),
        ("fetched", "verified"),
        ("verified", "verified"),
        ("activated", "activated"),
        ("verified", "activated"),
        ("activated", "activated"),
    ):
        assert host.report(directive, status) == 200
        assert world.targets(made)[host.id]["status"] == shown
    assert world.status(made) == "deploying"
    assert Confirmation.objects.count() == 1


def test_the_last_one_makes_it_active_once(on_its_way: tuple[World, str, Host, Any]) -> None:
    world, made, host, directive = on_its_way
    other = world.hosts[1]
    other.step()
    for _ in range(3):
        assert host.report(directive, "activated") == 200
    assert world.status(made) == "active"
    assert DeploymentEvent.objects.filter(deployment_id=made, to_status="active").count() == 1


def test_what_they_bring_is_kept(on_its_way: tuple[World, str, Host, Any]) -> None:
    world, made, host, directive = on_its_way
    tuning = {"requested": {"profile": "low-latency"}, "applied": {}, "degraded": ["cpu pinning"]}
    host.report(directive, "fetched")
    host.report(directive, "activated", tuning=tuning, log_tail="started\n", reason="")
    report = world.targets(made)[host.id]["report"]
    assert report["tuning"] == tuning
    assert report["log_tail"] == "started\n"
    assert report["status"] == "activated"


def test_updates_what_runs_in_the_same_moment(on_its_way: tuple[World, str, Host, Any]) -> None:
    _, made, host, directive = on_its_way
    for status in ("fetched", "verified"):
        host.report(directive, status)
        assert Agent.objects.get(pk=host.id).running_deployment_id is None
    host.report(directive, "activated")
    agent = Agent.objects.get(pk=host.id)
    assert str(agent.running_deployment_id) == made
    assert (agent.running_bundle_sha256, agent.running_sequence) == (directive.bundle_sha256, directive.sequence)


@pytest.mark.parametrize(
    ("status", "change"),
    [
        ("activated", {"sha256": "0" * 64}),
        ("activated", {"sequence": 1}),
        ("fetched", {"sha256": "0" * 64}),
        ("rolled_back", {}),
        ("stopped", {}),
        ("failed", {"sha256": "0" * 64}),
    ],
)
def test_of_something_else_are_409(
    on_its_way: tuple[World, str, Host, Any], status: str, change: dict[str, Any]
) -> None:
    world, made, host, directive = on_its_way
    body = {"sha256": directive.bundle_sha256, "sequence": directive.sequence, **change}
    assert host.send_report(made, status, **body) == 409
    assert world.targets(made)[host.id]["status"] == "assigned"


def test_by_one_that_is_no_target_are_404(on_its_way: tuple[World, str, Host, Any]) -> None:
    world, made, _, directive = on_its_way
    (late,) = world.enroll(1)
    (stranger,) = world.enroll(1, at=world.tenant.path(world.tenant.staging))
    for host in (late, stranger):
        assert host.report(directive, "activated") == 404
        assert host.send_report(str(uuid.uuid4()), "activated", directive.bundle_sha256, directive.sequence) == 404
    assert world.status(made) == "deploying"


def test_under_anothers_name_are_404(on_its_way: tuple[World, str, Host, Any]) -> None:
    world, made, host, directive = on_its_way
    other = world.hosts[1]
    body = {"status": "activated", "bundle_sha256": directive.bundle_sha256, "sequence": directive.sequence}
    assert other.http.post(f"/agents/{host.id}/deployments/{made}/status", body).status_code == 404
    assert world.targets(made)[host.id]["status"] == "assigned"


def test_before_it_was_assigned_are_409(staging: World) -> None:
    made = staging.request()
    host = staging.hosts[0]
    assert host.send_report(made, "activated", "a" * 64, 1) == 409
    staging.decide(made)
    assert host.send_report(made, "failed", None, None) == 409
    assert staging.status(made) == "approved"


def test_that_come_after_a_newer_deployment_was_assigned_are_409(world: World) -> None:
    first = world.roll_out(world.bundle("a:drop"))
    host = world.hosts[0]
    old = host.heartbeat()
    second = world.request(world.bundle("b:drop"))
    world.work()
    assert host.report(old, "activated") == 409
    host.step()
    assert host.report(old, "activated") == 409
    assert (world.status(first), world.status(second)) == ("active", "deploying")


def test_of_a_failure_without_a_reason_are_called_failed(on_its_way: tuple[World, str, Host, Any]) -> None:
    world, made, host, directive = on_its_way
    assert host.report(directive, "failed") == 200
    target = world.targets(made)[host.id]
    assert (target["report"]["reason"], target["report"]["failure"]) == ("", "failed")
    assert world.show(made)["status_reason"].endswith(f"; {target['agent_name']}: failed")


def test_of_a_failure_settle_the_target_and_a_repeat_changes_nothing(world: World) -> None:
    first = world.roll_out(world.bundle("a:drop"))
    second = world.request(world.bundle("b:drop"), strategy={"type": "all_at_once", "max_failures": 1})
    world.work()
    one, other = world.hosts
    directive = one.heartbeat()
    assert one.report(directive, "failed", reason="bad_signature: no") == 200
    events = DeploymentEvent.objects.count()
    assert one.report(directive, "failed", reason="bad_signature: no") == 200
    assert one.report(directive, "activated") == 409
    assert DeploymentEvent.objects.count() == events
    assert world.targets(second)[one.id]["report"]["reason"] == "bad_signature: no"
    assert world.status(second) == "deploying"
    other.step()
    assert world.status(second) == "active"
    # the one that failed gets the directive to stay where it was
    assert one.step() == "rollback"
    assert one.runs == first
    assert world.show(first)["superseded_by"] is None
    assert world.current() == second


def test_of_one_failure_too_many_fail_it_at_once(world: World) -> None:
    made = world.request()
    world.work()
    one, other = world.hosts
    directive = other.heartbeat()
    one.step(fail=True)
    assert world.status(made) == "failed"
    assert world.show(made)["status_reason"].startswith("failures_exceeded")
    assert other.report(directive, "activated") == 409
    assert other.step() == "stop"
    assert {code for *_, code in other.reported if code != 409} == {200}


def test_that_take_back_a_confirmation_are_409(world: World) -> None:
    made = world.request()
    world.work()
    one, _ = world.hosts
    directive = one.heartbeat()
    one.step()
    assert one.refusal(directive, "failed", reason="late") == (409, "already_settled")
    assert world.targets(made)[one.id]["status"] == "activated"


def test_another_report_that_was_written_first_makes_it_409(
    on_its_way: tuple[World, str, Host, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, made, host, directive = on_its_way
    judge = reports.effect_of

    def written_first(*given: Any) -> Any:
        effect = judge(*given)
        Target.objects.filter(deployment_id=made, agent_id=host.pk).update(status="verified")
        return effect

    monkeypatch.setattr(reports, "effect_of", written_first)
    assert host.refusal(directive, "fetched") == (409, "not_wanted")
    assert world.target(made, host).status == "assigned", "all of it is undone"


def test_a_removed_agents_reports_are_refused(world: World) -> None:
    made = world.request()
    world.work()
    one, _ = world.hosts
    directive = one.heartbeat()
    assert world.bob.delete(f"{world.path}/agents/{one.id}?force=true").status_code == 204
    assert one.report(directive, "activated") == 401
    assert world.status(made) == "failed"
