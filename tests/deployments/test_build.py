"""The build: fixed once, the same bytes however often, and nothing handed out that may not be."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest
import time_machine
from django.db import transaction

from apps.approvals.models import Approval
from apps.blobs.models import StoredBlob
from apps.core import clock
from apps.deployments.jobs import run_build
from apps.deployments.models import ConfigBundle, Deployment, DeploymentEvent
from apps.deployments.services import builds
from apps.jobs.models import Job
from apps.jobs.registry import LeaseLost
from apps.jobs.services import release_expired, take_job
from apps.tenancy.models import Environment
from tests.deployments.world import World

pytestmark = pytest.mark.django_db


def start(world: World, made: str) -> Any:
    return builds.start_build(deployment_id=world.row(made).pk, environment_id=world.env.pk)


def finish(work: builds.Work) -> str | None:
    return builds.finish_build(work, builds.make_archive(work), complete=lambda: None)


def test_run_twice_makes_the_same_bytes_once(world: World) -> None:
    made = world.request()
    first, second = start(world, made), start(world, made)
    assert isinstance(first, builds.Work)
    assert isinstance(second, builds.Work)
    one, two = builds.make_archive(first), builds.make_archive(second)
    assert one.archive == two.archive
    assert one.sha256 == two.sha256
    assert builds.finish_build(first, one, complete=lambda: None) is None
    assert builds.finish_build(second, two, complete=lambda: None) == "discarded: the deployment is deploying"
    assert StoredBlob.objects.count() == 1
    assert [to for _, to, _ in world.moves(made)] == ["pending_approval", "approved", "building", "deploying"]
    assert isinstance(start(world, made), builds.NothingToDo)


def test_taken_up_after_a_kill_keeps_what_was_fixed(world: World) -> None:
    made = world.request()
    start(world, made)
    fixed = world.row(made)
    with time_machine.travel(clock.now() + dt.timedelta(minutes=5), tick=False):
        world.work()
    row = world.row(made)
    assert row.status == "deploying"
    assert (row.sequence, row.built_at_ms, row.signing_kid) == (fixed.sequence, fixed.built_at_ms, fixed.signing_kid)


def test_a_failing_complete_undoes_the_whole_step(world: World) -> None:
    made = world.request()
    work = start(world, made)

    def lost() -> None:
        raise RuntimeError("the lease is lost")

    with pytest.raises(RuntimeError):
        builds.finish_build(work, builds.make_archive(work), complete=lost)
    assert world.status(made) == "building"
    assert not StoredBlob.objects.exists()
    assert [host.step() for host in world.hosts] == ["none", "none"]
    assert finish(work) is None


@pytest.mark.parametrize("verb", ["cancel", "revoke"])
def test_of_one_that_was_taken_back_meanwhile_is_discarded(staging: World, verb: str) -> None:
    world = staging
    made = world.request()
    world.decide(made)
    work = start(world, made)
    answer = world.act(made, "cancel") if verb == "cancel" else world.decide(made, "revoke")
    assert answer.status_code == 200, answer.content
    assert world.status(made) == "denied"
    assert world.approval(made)["status"] == "revoked"
    assert finish(work) == "discarded: the deployment is denied"
    assert not StoredBlob.objects.exists()
    assert [host.step() for host in world.hosts] == ["none", "none"]
    world.work()
    assert world.status(made) == "denied"
    assert Job.objects.get(subject_id=made).status == "completed"


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_of_an_environment_that_is_deleted_meanwhile_is_discarded(
    world: World, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    made = world.row(world.request())
    work = start(world, str(made.pk))
    keep = builds.blobs.store_file

    def delete() -> None:
        Environment.objects.filter(pk=world.env.pk).update(deleted_at=clock.now())

    def kept_and_deleted(**given: Any) -> Any:
        stored = keep(**given)
        delete()
        return stored

    if when == "before":
        Deployment.objects.filter(pk=made.pk).delete()
    elif when == "during":
        monkeypatch.setattr(builds.blobs, "store_file", kept_and_deleted)
    if when != "after":
        assert finish(work) == "discarded: the deployment is deleted"
        assert not StoredBlob.objects.exists()
        return
    delete()
    builds.give_up_build(deployment_id=made.pk, environment_id=world.env.pk, error="disk full")
    made.refresh_from_db()
    assert made.status == "building"


def test_that_is_done_is_not_given_up(world: World) -> None:
    made = world.roll_out()
    with transaction.atomic():
        builds.give_up_build(deployment_id=world.row(made).pk, environment_id=world.env.pk, error="disk full")
    assert world.status(made) == "active"


def test_with_an_expired_credential_fails_in_one_transaction(staging: World) -> None:
    world = staging
    made = world.request()
    world.decide(made)
    with time_machine.travel(clock.now() + dt.timedelta(hours=8, minutes=1), tick=False):
        note = start(world, made)
    assert isinstance(note, builds.NothingToDo)
    shown = world.show(made)
    assert shown["status"] == "failed"
    assert shown["status_reason"].startswith("credential_expired")
    assert world.moves(made)[-2:] == [
        ("approved", "building", "build_started"),
        ("building", "failed", "credential_expired"),
    ]
    assert world.row(made).sequence is None


def test_when_the_base_moved_fails_in_one_transaction(staging: World) -> None:
    world = staging
    one, other = world.hosts
    first = world.roll_out_approved(world.bundle("a:drop"))
    waiting = world.request(world.bundle("b:drop"))
    world.decide(waiting)
    assert world.act(first, "rollback").status_code == 200
    world.work()
    assert world.status(waiting) == "approved"
    one.step()
    other.step()
    world.work()
    shown = world.show(waiting)
    assert shown["status"] == "failed"
    assert shown["status_reason"].startswith("base_moved")
    assert world.moves(waiting)[-1] == ("building", "failed", "base_moved")


def test_a_dead_job_fails_the_deployment(world: World) -> None:
    made = world.request()
    start(world, made)
    with transaction.atomic():
        builds.give_up_build(deployment_id=world.row(made).pk, environment_id=world.env.pk, error="disk full")
    assert world.show(made)["status_reason"] == "build_failed: disk full"
    with transaction.atomic():
        builds.give_up_build(deployment_id=world.row(made).pk, environment_id=world.env.pk, error="disk full")
    assert DeploymentEvent.objects.filter(deployment_id=made, to_status="failed").count() == 1


def test_one_that_can_never_be_made_is_buried_at_once_and_fails_the_deployment(world: World) -> None:
    made = world.request()
    ConfigBundle.objects.filter(pk=world.row(made).bundle_id).delete()
    world.work()
    job = Job.objects.get(subject_id=made)
    assert job.status == "dead_letter"
    assert world.show(made)["status_reason"] == "build_failed: its config bundle was deleted"
    assert world.bob.post(f"{world.path}/jobs/{job.pk}/retry", {}).status_code == 200
    world.work()
    assert (Job.objects.get(subject_id=made).status, world.status(made)) == ("completed", "failed")


def test_of_a_deleted_deployment_is_a_no_op(world: World) -> None:
    import uuid

    note = builds.start_build(deployment_id=uuid.uuid4(), environment_id=world.env.pk)
    assert isinstance(note, builds.NothingToDo)
    assert "deleted" in note.note


def test_the_credential_sweep_fails_what_was_not_built_yet(staging: World) -> None:
    from apps.deployments.approval_subject import DeploymentSubject

    world = staging
    made = world.request()
    world.decide(made)
    approval = Approval.objects.get(deployment_id=made)
    with transaction.atomic():
        DeploymentSubject().on_credential_expired(approval=approval)
    assert world.show(made)["status_reason"].startswith("credential_expired")


def test_with_the_bytes_of_another_key_is_not_what_the_host_takes(world: World) -> None:
    from apps.runtime import trust

    made = world.request()
    work = start(world, made)
    private = trust.generate_private_key()
    foreign = replace(work, signer=trust.Signer(trust.kid_of(trust.public_key(private)), private))
    finish(foreign)
    host = world.hosts[0]
    directive = host.heartbeat()
    with pytest.raises(trust.TrustError) as refused:
        host.fetch(directive)
    assert refused.value.code == "unknown_key"


def test_a_worker_that_lost_its_job_begins_nothing(world: World) -> None:
    """It hung before it began, its lease ran out, and another has the job: what it does then has no effect."""
    made = world.request(world.bundle())
    hung = next(run for run in iter(take_job, None) if run.type == "deploy_bundle_build")
    with time_machine.travel(clock.now() + dt.timedelta(seconds=31), tick=False):
        assert release_expired() >= 1
    with pytest.raises(LeaseLost):
        run_build(hung)
    assert world.status(made) == "approved"
    with time_machine.travel(clock.now() + dt.timedelta(minutes=5), tick=False):
        world.work()
    assert world.status(made) == "deploying"


def test_a_build_that_has_to_wait_ends_its_job_before_the_next_is_queued(world: World) -> None:
    """A rollback came first: the job ends in the transaction that sends it back to waiting, so that there is never a second."""
    first = world.roll_out(world.bundle("a:drop"))
    bundle = world.bundle("b:drop")
    world.work()
    second = world.request(bundle)
    assert world.act(first, "rollback").status_code == 200
    run = take_job()
    assert run is not None
    assert run_build(run) == builds.WAITS
    assert Job.objects.get(pk=run.job_id).status == "completed"
    assert world.builds() == []
    world.settle()
    assert world.builds() == [second]
