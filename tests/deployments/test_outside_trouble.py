"""What is outside may be away for half an hour: that uses up no attempt of a job, and a tenant's failure holds up no other."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import time_machine
from django.db import OperationalError
from django.test import Client

from apps.approvals.models import Approval
from apps.approvals.services import expiry_and_revocation
from apps.audit.models import ChainHead
from apps.blobs.store import FolderStore
from apps.core import clock, metrics
from apps.core.errors import StorageUnavailable
from apps.deployments.models import Deployment, Target
from apps.deployments.services import end_due_bakes, time_out_silent_targets
from apps.jobs.models import Chore, Job
from apps.jobs.services import release_expired, take_job
from tests.deployments.world import World
from tests.support import Tenant, run_due_chores

pytestmark = pytest.mark.django_db


class Clock:
    """The one clock, moved by hand."""

    def __init__(self, traveller: Any) -> None:
        self._traveller = traveller

    def on(self, **by: float) -> None:
        self._traveller.shift(dt.timedelta(**by))


@pytest.fixture
def time(db: None) -> Any:
    with time_machine.travel(dt.datetime.now(dt.UTC), tick=False) as traveller:
        yield Clock(traveller)


def away(*given: object) -> None:
    raise StorageUnavailable("put: ConnectTimeoutError")


def run_for(world: World, time: Clock, minutes: int) -> None:
    """The worker looks once a minute for so long."""
    for _ in range(minutes):
        world.work()
        time.on(seconds=60)


def test_a_build_waits_for_the_store_for_half_an_hour_and_then_goes_through(
    world: World, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world.request()
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put", away)
        run_for(world, time, 29)
        job = Job.objects.get(subject_id=made)
        assert (job.status, world.status(made)) == ("retrying", "building")
        assert job.attempts == job.max_attempts - 5 > 20
        assert "ConnectTimeoutError" in job.error
    for host in world.hosts:
        host.heartbeat()
    world.work()
    time.on(seconds=15)
    world.work()
    world.settle()
    assert world.status(made) == "active"


def test_after_half_an_hour_attempts_count_again_and_a_retry_by_hand_begins_anew(
    world: World, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world.request()
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put", away)
        run_for(world, time, 40)
    job = Job.objects.get(subject_id=made)
    assert (job.status, world.status(made)) == ("dead_letter", "failed")
    assert world.bob.post(f"{world.path}/jobs/{job.pk}/retry", {}).status_code == 200
    job = Job.objects.get(subject_id=made)
    assert (job.attempts, job.max_attempts, job.trouble_since) == (0, 5, None)


def test_what_is_no_trouble_outside_is_dead_after_its_attempts(
    world: World, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise ValueError("ours")

    made = world.request()
    monkeypatch.setattr(FolderStore, "put", broken)
    run_for(world, time, 8)
    job = Job.objects.get(subject_id=made)
    assert (job.status, job.attempts, job.max_attempts) == ("dead_letter", 5, 5)


def test_a_credential_that_runs_out_ends_the_waiting(
    staging: World, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = staging
    made = world.request()
    world.decide(made)
    monkeypatch.setattr(FolderStore, "put", away)
    run_for(world, time, 1)
    time.on(hours=9)
    world.work()
    assert world.show(made)["status_reason"].startswith("credential_expired")


def test_an_agent_that_waits_for_our_store_is_not_silent_for_half_an_hour(
    world: World, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world.request(timeout_seconds=60)
    world.work()
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "open", away)
        for _ in range(28):
            for host in world.hosts:
                directive = host.heartbeat()
                answer = host.http.get(f"/agents/{host.id}/deployments/{directive.deployment_id}/bundle")
                assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
            time.on(seconds=59)
            assert time_out_silent_targets(clock.now()) == 0
    world.settle()
    assert world.status(made) == "active"


def test_after_half_an_hour_of_that_the_rollout_fails(
    world: World, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world.request(timeout_seconds=300)
    world.work()
    monkeypatch.setattr(FolderStore, "open", away)
    for _ in range(9):
        for host in world.hosts:
            assert host.http.get(f"/agents/{host.id}/deployments/{made}/bundle").status_code == 503
        time.on(seconds=250)
        time_out_silent_targets(clock.now())
    assert world.status(made) == "failed"


@pytest.mark.postgres
def test_an_agent_that_waits_for_our_store_to_roll_back_is_not_silent_for_half_an_hour(
    world: World, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, silent = world.hosts
    first = world.roll_out(world.bundle("a:drop"))
    made = world.roll_out(world.bundle("b:drop"), timeout_seconds=300)
    assert world.act(made, "rollback").status_code == 200
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "open", away)
        for _ in range(7):
            directive = waits.heartbeat()
            assert (directive.directive, str(directive.deployment_id)) == ("rollback", first)
            assert waits.http.get(f"/agents/{waits.id}/deployments/{first}/bundle").status_code == 503
            time.on(seconds=250)
            time_out_silent_targets(clock.now())
    assert world.status(made) == "rolling_back"
    assert world.targets(made)[silent.id]["status"] == "unreachable"
    waits.step()
    assert world.status(made) == "rolled_back"
    assert world.targets(made)[waits.id]["status"] == "rolled_back"


def test_after_half_an_hour_of_that_the_rollback_ends_without_them(
    world: World, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.roll_out(world.bundle("a:drop"))
    made = world.roll_out(world.bundle("b:drop"), timeout_seconds=300)
    assert world.act(made, "rollback").status_code == 200
    monkeypatch.setattr(FolderStore, "open", away)
    for _ in range(10):
        for host in world.hosts:
            assert host.http.get(f"/agents/{host.id}/deployments/{first}/bundle").status_code == 503
        time.on(seconds=250)
        time_out_silent_targets(clock.now())
    assert world.status(made) == "rolled_back"
    assert {row["status"] for row in world.targets(made).values()} == {"unreachable"}


def other_tenants_world(world: World) -> World:
    """The other tenant, with a host of its own; charlie operates it."""
    tenant = world.tenant
    theirs = Tenant(
        tenant.other_organization,
        tenant.other_project,
        tenant.other_environment,
        tenant.other_environment,
        tenant.other_environment,
        tenant.organization,
        tenant.project,
        tenant.dev,
        {**tenant.people, "bob": tenant.people["charlie"]},
    )
    other = World(theirs, tenant.other_environment)
    other.enroll(1)
    return other


def poison(tenant: Tenant) -> None:
    """The organization's audit head names a key that is not configured: nothing of its can be recorded."""
    ChainHead.objects.filter(chain=str(tenant.organization.pk)).update(mac_key="away", mac="00")


def run_chores(name: str) -> Chore:
    Chore.objects.filter(pk=name).update(next_run_at=clock.now())
    run_due_chores()
    return Chore.objects.get(pk=name)


def both(world: World) -> tuple[World, World]:
    """Two tenants with a host each; their first items sort before or after each other by chance of ids."""
    return world, other_tenants_world(world)


@pytest.mark.postgres
def test_one_tenants_timeouts_hold_up_no_other(world: World, time: Clock) -> None:
    ours, theirs = both(world)
    made, other = ours.request(), theirs.request()
    world.work()
    poison(world.tenant)
    time.on(hours=1)
    for _ in range(2):
        time_out_silent_targets(clock.now())
    assert Deployment.objects.get(pk=other).status == "failed"
    assert Deployment.objects.get(pk=made).status == "deploying"
    assert run_chores("deployment_timeouts").last_failed == 1
    metrics.forget()
    assert b'byteor_chore_failed_items{chore="deployment_timeouts"} 1.0' in metrics.exposition()


@pytest.mark.postgres
def test_one_tenants_bakes_hold_up_no_other(world: World, time: Clock) -> None:
    strategy = {"type": "phased", "phases": [{"percent": 100, "bake_seconds": 10}]}
    ours, theirs = both(world)
    made, other = ours.request(strategy=strategy), theirs.request(strategy=strategy)
    world.work()
    ours.settle()
    theirs.settle()
    poison(world.tenant)
    time.on(seconds=11)
    for host in (*ours.hosts, *theirs.hosts):
        host.heartbeat()
    end_due_bakes(clock.now())
    assert Deployment.objects.get(pk=other).status == "active"
    assert Deployment.objects.get(pk=made).status == "deploying"


@pytest.mark.postgres
def test_one_tenants_expired_credentials_hold_up_no_other(world: World, time: Clock) -> None:
    ours, theirs = both(world)
    made, other = ours.request(), theirs.request()
    assert {ours.status(made), theirs.status(other)} == {"approved"}
    poison(world.tenant)
    # the poisoned one is the oldest, so it is met first
    for approval, hours in zip(Approval.objects.order_by("pk"), (2, 1), strict=True):
        past = clock.now() - dt.timedelta(hours=hours)
        Approval.objects.filter(pk=approval.pk).update(credential_expires_at=past)
    row = run_chores("credential_expiry")
    assert (row.last_error, row.last_failed) == ("", 1)
    assert Deployment.objects.get(pk=other).status == "failed"
    assert Deployment.objects.get(pk=made).status == "approved"


@pytest.mark.postgres
def test_one_approval_that_cant_expire_holds_up_no_other(
    staging: World, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = staging
    first, second = (
        world.request(world.bundle(f"{name}:drop"), targets=[h]) for name, h in zip("ab", world.hosts, strict=True)
    )
    original = expiry_and_revocation.move

    def move(approval: Approval, *given: Any, **more: Any) -> None:
        if str(approval.deployment_id) == first:
            raise RuntimeError("nothing of this tenant can be recorded")
        original(approval, *given, **more)

    monkeypatch.setattr(expiry_and_revocation, "move", move)
    time.on(hours=25)
    row = run_chores("approval_expiry")
    assert (row.last_error, row.last_result, row.last_failed) == ("", 1, 1)
    assert (world.status(first), world.status(second)) == ("pending_approval", "denied")


@pytest.mark.postgres
def test_one_tenants_lost_leases_hold_up_no_other(world: World, time: Clock) -> None:
    ours, theirs = both(world)
    ours.request()
    theirs.request()
    poison(world.tenant)
    Job.objects.filter(status="queued").update(max_attempts=1)
    assert take_job() is not None
    assert take_job() is not None
    time.on(minutes=10)
    release_expired()
    statuses = dict(Job.objects.filter(attempts=1).values_list("organization_id", "status"))
    assert statuses == {world.tenant.organization.pk: "running", world.tenant.other_organization.pk: "dead_letter"}


@pytest.mark.postgres
def test_a_database_error_in_a_handler_uses_up_no_attempt(
    world: World, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise OperationalError("server closed the connection unexpectedly")

    made = world.request()
    monkeypatch.setattr(FolderStore, "put", fail)
    run_for(world, time, 5)
    assert Job.objects.get(subject_id=made).status == "retrying"


@pytest.mark.postgres
def test_nothing_of_other_deployments_moves_when_one_goes_back(world: World) -> None:
    """The targets of all other deployments are as they were, to the last column."""
    ours, theirs = both(world)
    first, second = ours.hosts[:2]
    ours.roll_out(targets=[first])
    goes_back = ours.request(targets=[first])
    stays, elsewhere = ours.request(targets=[second]), theirs.request()
    world.work()
    others = Target.objects.filter(deployment_id__in=[stays, elsewhere]).order_by("pk")
    before = list(others.values())
    assert all(row["sequence"] and row["settled_at"] is None for row in before)
    assert len(before) == 2
    assert ours.act(goes_back, "rollback").status_code == 200
    assert list(others.values()) == before
    ours.settle(first)
    assert ours.status(goes_back) == "rolled_back"
    assert list(others.values()) == before


def pages_of(world: World, made: str) -> list[str]:
    """The deployment's page and its approval's."""
    client = Client()
    client.force_login(world.tenant.people["carol"])
    row = world.row(made)
    urls = (f"deployments/deployment/{row.pk}", f"approvals/approval/{row.approval_id}")
    return [client.get(f"/admin/{url}/change/").content.decode() for url in urls]


def test_why_an_approved_deployment_does_not_go_on_is_in_its_answer_and_on_both_pages(
    world: World, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.request(targets=world.hosts[:1])
    assert world.show(first)["status_reason"] == ""
    second = world.request(world.bundle("phone:drop"))
    waits = "target_busy: It waits for orders v1 (approved, 1 of the same agents)."
    assert world.show(second)["status_reason"] == waits
    answer = world.bob.get(f"{world.path}/deployments/{second}")
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put", away)
        world.work()
    trouble = "Storage is not available. The build is retried automatically."
    assert world.show(first)["status_reason"] == f"build_retrying: {trouble}"
    assert world.show(second)["status_reason"] == waits.replace("approved", "building")
    assert world.bob.get(f"{world.path}/deployments/{second}")["ETag"] != answer["ETag"]
    assert all(trouble in page for page in pages_of(world, first))
    time.on(seconds=15)
    world.work()
    assert (world.status(first), world.show(first)["status_reason"]) == ("deploying", "")
    assert not any("tried again" in page for page in pages_of(world, first))


def test_a_signing_key_that_can_not_be_opened_is_named_while_the_build_waits(
    world: World, time: Clock, settings: Any
) -> None:
    made = world.request()
    good = settings.BYTEOR_KEY_ENCRYPTION_KEYS
    settings.BYTEOR_KEY_ENCRYPTION_KEYS = [("another", bytes(32))]
    world.work()
    reason = world.show(made)["status_reason"]
    assert world.status(made) == "approved"
    assert reason.startswith("build_retrying: The organization's signing key can't be opened. The build is retried")
    settings.BYTEOR_KEY_ENCRYPTION_KEYS = good
    time.on(seconds=15)
    world.work()
    assert world.show(made)["status_reason"] == ""
