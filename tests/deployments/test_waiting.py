"""One at a time per target; calling off; silence; agents and whole trees that go."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import time_machine

from apps.approvals.models import Approval
from apps.audit.models import AuditEvent
from apps.blobs.models import StoredBlob
from apps.core import clock
from apps.deployments.models import ConfigBundle, Confirmation, Deployment, DeploymentEvent, Target
from apps.deployments.services import end_due_bakes, time_out_silent_targets
from apps.jobs.models import Job
from apps.jobs.registry import chores
from tests.deployments.world import World

pytestmark = pytest.mark.django_db


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def later(seconds: int) -> Any:
    return time_machine.travel(clock.now() + dt.timedelta(seconds=seconds), tick=True)


class TestOneAtATime:
    """A build starts only when every target is free."""

    def test_the_second_waits_and_the_one_that_frees_the_last_target_queues_it(self, world: World) -> None:
        first = world.request(world.bundle("a:drop"))
        assert world.builds() == [first]
        world.work()
        second = world.request(world.bundle("b:drop"))
        assert world.builds() == []
        assert (world.status(first), world.status(second)) == ("deploying", "approved")
        world.hosts[0].step()
        assert world.builds() == []
        world.hosts[1].step()
        assert world.status(first) == "active"
        assert world.builds() == [second]
        world.work()
        assert world.status(second) == "deploying"

    def test_others_targets_do_not_wait(self, world: World) -> None:
        one, other = world.hosts
        first, second = world.request(world.bundle("a:drop"), [one]), world.request(world.bundle("b:drop"), [other])
        assert world.builds() == [first, second]

    def test_the_oldest_approval_goes_first(self, staging: World) -> None:
        world = staging
        first = world.request(world.bundle("a:drop"))
        younger = world.request(world.bundle("b:drop"))
        older = world.request(world.bundle("c:drop"))
        for made in (first, older, younger):
            assert world.decide(made).status_code == 200
        world.work()
        assert world.builds() == []
        world.decide(first, "revoke", who="carol")
        assert world.status(first) in ("rolling_back", "rolled_back")
        world.settle()
        assert world.status(first) == "rolled_back"
        assert world.builds() == [older]

    def test_a_later_approval_does_not_overtake_on_a_shared_target(self, world: World) -> None:
        one, other = world.hosts
        first = world.request(world.bundle("a:drop"), [one])
        world.work()
        both = world.request(world.bundle("b:drop"))
        late = world.request(world.bundle("c:drop"), [other])
        assert world.builds() == []
        one.step()
        assert world.status(first) == "active"
        assert world.builds() == [both]
        world.work()
        world.settle()
        assert world.status(both) == "active"
        assert world.builds() == [late]
        # it was decided against what `other` ran before: that has changed since
        world.work()
        assert world.show(late)["status_reason"].startswith("base_moved")

    @pytest.mark.parametrize("end", ["cancel", "fail"])
    def test_however_the_first_ends_the_second_goes_on(self, world: World, end: str) -> None:
        first = world.request(world.bundle("a:drop"))
        second = world.request(world.bundle("b:drop"))
        if end == "cancel":
            world.act(first, "cancel")
        else:
            world.work()
            world.hosts[0].step(fail=True)
            assert world.status(first) == "failed"
        assert second in world.builds()
        world.work()
        # decided while the first was under way, whose targets then went elsewhere
        assert world.status(second) in ("deploying", "failed")
        if end == "cancel":
            assert world.status(second) == "deploying"

    @pytest.mark.parametrize(
        "way",
        [
            "it is cancelled",
            "its approval is revoked",
            "its credential is found expired",
            "it is rolled back before any agent has it",
            "its credential expires before its build",
            "its build can never succeed",
            "too many of its agents are removed before its build",
            "an agent is removed",
            "an agent reports a failure",
            "the last agent reports",
            "an agent is silent",
            "an agent is unhealthy in its bake",
            "its bake ends",
        ],
    )
    def test_whatever_ends_the_first_queues_the_build_of_the_second(self, world: World, way: str) -> None:
        phases = [{"percent": 100, "bake_seconds": 0 if way == "the last agent reports" else 30}]
        first = world.request(world.bundle("a:drop"), strategy={"type": "phased", "phases": phases}, timeout_seconds=60)
        second = world.request(world.bundle("b:drop"))
        assert world.builds() == [first]
        end_rollout(world, first, way)
        assert Job.objects.filter(type="deploy_bundle_build", subject_id=second).count() == 1


def end_rollout(world: World, made: str, way: str) -> None:
    """End a deployment in one of the ways of the test above."""
    removed = f"{world.path}/agents/{world.hosts[0].id}?force=true"
    if way == "it is cancelled":
        assert world.act(made, "cancel").status_code == 200
        return
    if way == "its approval is revoked":
        assert world.decide(made, "revoke").status_code == 200
        return
    if way == "its credential is found expired":
        Approval.objects.filter(deployment_id=made).update(credential_expires_at=clock.now())
        [chore] = [spec for spec in chores() if spec.name == "credential_expiry"]
        assert chore.run(clock.now()) == 1
        return
    if way == "its credential expires before its build":
        with later(8 * 3600 + 60):
            world.work()
        assert world.show(made)["status_reason"].startswith("credential_expired")
        return
    if way == "its build can never succeed":
        ConfigBundle.objects.filter(pk=world.row(made).bundle_id).delete()
    elif way == "too many of its agents are removed before its build":
        assert world.bob.delete(removed).status_code == 204
        assert world.status(made) == "approved"
    world.work()
    if way == "it is rolled back before any agent has it":
        assert world.act(made, "rollback").json()["status"] == "rolled_back"
    elif way == "an agent is removed":
        assert world.bob.delete(removed).status_code == 204
    elif way == "an agent reports a failure":
        world.hosts[0].step(fail=True)
    elif way == "an agent is silent":
        with later(61):
            assert time_out_silent_targets(clock.now()) == 2
    elif way in ("the last agent reports", "an agent is unhealthy in its bake", "its bake ends"):
        world.settle()
        if way == "an agent is unhealthy in its bake":
            world.hosts[0].heartbeat({"ok": False})
        elif way == "its bake ends":
            with later(31):
                for host in world.hosts:
                    host.heartbeat()
                assert end_due_bakes(clock.now()) == 1
    assert world.status(made) in ("active", "failed", "rolled_back")


class TestCallingOff:
    """Cancel and revoke, by state."""

    def test_of_a_pending_request_is_for_its_requester_alone_and_another_attempt_is_recorded(
        self, staging: World
    ) -> None:
        made = staging.request()
        assert code(staging.act(made, "cancel", who="carol")) == (403, "permission_denied")
        assert staging.status(made) == "pending_approval"
        [event] = AuditEvent.objects.filter(action="deployment.cancel", outcome="denied")
        assert (event.target, event.details) == (f"deployment:{made}", {"reason": "not_the_requester"})
        assert event.organization_id == staging.tenant.organization.pk
        withdrawn = staging.bob.post(f"{staging.path}/deployments/{made}/cancel", {})
        assert (withdrawn.status_code, withdrawn.json()["status"]) == (200, "denied")

    def test_of_what_was_approved_needs_a_reason(self, world: World) -> None:
        made = world.request()
        for status in ("approved", "deploying"):
            for body in ({}, {"reason": "  "}):
                refused = world.bob.post(f"{world.path}/deployments/{made}/cancel", body)
                assert code(refused) == (422, "comment_required")
            assert world.status(made) == status
            world.work()

    @pytest.mark.parametrize("verb", ["cancel", "revoke"])
    def test_before_it_was_handed_out_is_denied(self, staging: World, verb: str) -> None:
        world = staging
        for state in ("pending_approval", "approved", "building"):
            made = world.request(world.bundle(f"{state}:drop"))
            if state != "pending_approval":
                world.decide(made)
            if state == "building":
                from apps.deployments.services.builds import start_build

                start_build(deployment_id=world.row(made).pk, environment_id=world.env.pk)
            assert world.status(made) == state
            who = "bob"
            answer = world.act(made, "cancel") if verb == "cancel" else world.decide(made, "revoke", who=who)
            assert answer.status_code == 200, answer.content
            assert world.status(made) == "denied"
            assert world.approval(made)["status"] == "revoked"

    @pytest.mark.parametrize("verb", ["cancel", "revoke"])
    def test_while_deploying_goes_back(self, staging: World, verb: str) -> None:
        world = staging
        made = world.request()
        world.decide(made)
        world.work()
        world.hosts[0].step()
        answer = world.act(made, "cancel") if verb == "cancel" else world.decide(made, "revoke")
        assert answer.status_code == 200, answer.content
        assert world.status(made) == "rolling_back"
        assert world.approval(made)["status"] == "revoked"
        world.settle()
        assert world.status(made) == "rolled_back"

    @pytest.mark.parametrize("verb", ["cancel", "revoke"])
    def test_later_is_409_deployment_completed(self, staging: World, verb: str) -> None:
        world = staging
        made = world.roll_out_approved()
        before = world.moves(made)
        answer = world.act(made, "cancel") if verb == "cancel" else world.decide(made, "revoke")
        assert code(answer) == (409, "deployment_completed")
        assert world.moves(made) == before
        assert world.approval(made)["status"] == "approved"
        world.act(made, "rollback")
        assert code(world.act(made, "cancel")) == (409, "deployment_completed")

    def test_twice_is_409(self, world: World) -> None:
        made = world.request()
        assert world.act(made, "cancel", body={"reason": "no"}).json()["status"] == "denied"
        assert world.show(made)["status_reason"] == "cancelled: no"
        assert code(world.act(made, "cancel")) == (409, "invalid_transition")

    def test_a_denial_and_an_expiry_are_final(self, staging: World) -> None:
        world = staging
        made = world.request()
        assert world.decide(made, "deny").status_code == 200
        shown = world.show(made)
        assert shown["status"] == "denied"
        assert shown["status_reason"].startswith("denied")
        assert world.bob.get(f"{world.path}/deployments?status=denied").json()["results"]
        assert code(world.act(made, "cancel")) == (409, "invalid_transition")


class TestSilence:
    """Targets that do not answer."""

    def test_too_many_fail_it(self, world: World) -> None:
        made = world.request(timeout_seconds=60)
        world.work()
        world.hosts[0].step()
        with later(30):
            assert time_out_silent_targets(clock.now()) == 0
        with later(61):
            assert time_out_silent_targets(clock.now()) == 1
            assert time_out_silent_targets(clock.now()) == 0
        assert world.status(made) == "failed"
        assert world.show(made)["targets"]["unreachable"] == 1

    def test_few_enough_let_it_become_active_and_they_catch_up(self, world: World) -> None:
        one, other = world.hosts
        made = world.request(timeout_seconds=60, strategy={"type": "all_at_once", "max_failures": 1})
        world.work()
        one.step()
        with later(61):
            time_out_silent_targets(clock.now())
            assert world.status(made) == "active"
            assert other.step() == "activate"
        assert world.targets(made)[other.id]["status"] == "activated"
        assert world.status(made) == "active"

    def test_the_clock_starts_when_it_is_assigned(self, world: World) -> None:
        made = world.request(timeout_seconds=60)
        with later(3600):
            assert time_out_silent_targets(clock.now()) == 0
            world.work()
            assert time_out_silent_targets(clock.now()) == 0
        assert world.status(made) == "deploying"


class TestAgentsThatGo:
    """Removed or revoked while something is in flight."""

    @pytest.mark.parametrize("way", ["delete", "revoke"])
    def test_need_force_and_then_fail_their_target(self, world: World, way: str) -> None:
        one, other = world.hosts
        made = world.request(strategy={"type": "all_at_once", "max_failures": 1})
        world.work()

        def go(query: str) -> Any:
            path = f"{world.path}/agents/{one.id}"
            return (
                world.bob.delete(path + query) if way == "delete" else world.bob.post(f"{path}/revoke-key{query}", {})
            )

        refused = go("")
        assert refused.status_code == 409
        assert any(made in b for b in refused.json()["blockers"])
        assert go("?force=true").status_code == (204 if way == "delete" else 200)
        target = world.targets(made)[one.id]
        assert target["status"] == "failed"
        assert target["report"]["reason"] == "agent_removed"
        assert target["agent_name"]
        other.step()
        assert world.status(made) == "active"

    def test_fail_the_deployment_when_it_was_the_last_straw(self, world: World) -> None:
        made = world.request()
        world.work()
        assert world.bob.delete(f"{world.path}/agents/{world.hosts[0].id}?force=true").status_code == 204
        assert world.status(made) == "failed"

    def test_while_it_waits_for_approval_count_when_it_deploys(self, staging: World) -> None:
        world = staging
        made = world.request()
        removed, stays = world.hosts
        assert world.bob.delete(f"{world.path}/agents/{removed.id}?force=true").status_code == 204
        assert world.status(made) == "pending_approval"
        assert world.decide(made).status_code == 200
        world.work()
        assert world.status(made) == "failed"
        # too many failures before the first directive: there is none
        assert stays.step() == "none"

    def test_do_not_hold_up_a_rollback(self, world: World) -> None:
        made = world.roll_out()
        world.act(made, "rollback")
        removed, stays = world.hosts
        stays.step()
        assert world.bob.delete(f"{world.path}/agents/{removed.id}?force=true").status_code == 204
        assert world.status(made) == "rolled_back"

    def test_go_without_force_when_nothing_is_in_flight(self, world: World) -> None:
        world.roll_out()
        assert world.bob.delete(f"{world.path}/agents/{world.hosts[0].id}").status_code == 204


class TestTreesThatGo:
    """Deleting what deployments hang on."""

    def test_needs_force_while_something_is_in_flight(self, world: World) -> None:
        made = world.request()
        alice = world.caller("alice")
        project = f"/orgs/{world.tenant.organization.pk}/projects/{world.tenant.project.pk}"
        for path in (world.path, project, f"/orgs/{world.tenant.organization.pk}"):
            answer = alice.delete(path)
            assert answer.status_code == 409
            assert any(made in b for b in answer.json()["blockers"])
        assert world.status(made) == "approved"

    def test_takes_every_row_and_file_and_leaves_the_neighbour(self, world: World, staging: World) -> None:
        world.roll_out()
        world.request(world.bundle("z:drop"))
        kept = staging.roll_out_approved()
        key = world.hosts[0].http
        alice = world.caller("alice")
        assert alice.delete(f"{world.path}?force=true").status_code == 204
        for model in (Deployment, ConfigBundle, Confirmation, StoredBlob):
            assert not model.objects.filter(environment=world.env).exists()
        for model in (Target, DeploymentEvent):
            assert not model.objects.filter(deployment__environment=world.env).exists()
            assert set(model.objects.values_list("deployment__environment_id", flat=True)) == {staging.env.pk}
        assert key.get(f"/agents/{world.hosts[0].id}/deployment").status_code == 401
        assert staging.status(kept) == "active"
        assert StoredBlob.objects.count() == 1
        staging.hosts[0].running = None
        assert staging.hosts[0].step() == "activate"

    def test_a_job_that_meets_a_tombstone_stops(self, world: World) -> None:
        from apps.deployments.services import builds
        from apps.tenancy.models import Environment

        made = world.row(world.request())
        Environment.objects.filter(pk=world.env.pk).update(deleted_at=clock.now())
        note = builds.start_build(deployment_id=made.pk, environment_id=world.env.pk)
        assert isinstance(note, builds.NothingToDo)
        assert time_out_silent_targets(clock.now() + dt.timedelta(days=1)) == 0
