"""Opposite moves at one moment: exactly one wins, the others get a conflict, and all ends where the events lead."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import time_machine

from apps.audit.models import AuditEvent
from apps.core import clock
from apps.deployments.models import DeploymentEvent
from apps.jobs.models import Job, JobAttempt
from apps.jobs.services import release_expired, take_job
from apps.runtime.trust import Directive
from tests import invariants
from tests.deployments.world import Host, World
from tests.races.conftest import Racers, post, statuses

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]


def status_report(host: Host, directive: Directive, status: str, **more: Any) -> dict[str, Any]:
    """A status report on what `directive` asks for, to be raced."""
    body = {"status": status, "bundle_sha256": directive.bundle_sha256, "sequence": directive.sequence}
    return post(host.http, f"/agents/{host.id}/deployments/{directive.for_deployment_id}/status", body, **more)


def test_workers_on_one_build_make_one_effect(dev: World, racers: Racers) -> None:
    made = dev.request()
    racers.race(*[{"do": "drain"}] * 9)
    assert [to for _, to, _ in dev.moves(made)] == ["pending_approval", "approved", "building", "deploying"]
    job = Job.objects.get(type="deploy_bundle_build")
    assert (job.status, job.attempts) == ("completed", 1)
    invariants.check(at_rest=True)


def test_workers_on_many_jobs_take_each_once(dev: World, racers: Racers) -> None:
    for n in range(12):
        dev.bob.post(f"{dev.path}/drafts", {"name": f"d{n}", "spec": "spec.version=1\n"})
    racers.race(*[{"do": "drain"}] * 9)
    jobs = Job.objects.filter(type="spec_ingest")
    assert set(jobs.values_list("status", "attempts")) == {("completed", 1)}
    assert JobAttempt.objects.filter(job__in=jobs).count() == 24
    invariants.check(at_rest=True)


def test_rollbacks_at_once_are_one(dev: World, racers: Racers) -> None:
    made = dev.roll_out()
    answers = racers.race(*[post(dev.bob, f"{dev.path}/deployments/{made}/rollback")] * 9)
    assert statuses(answers) == {200: 1, 409: 8}
    assert {a.code for a in answers if a.status == 409} == {"invalid_transition"}
    assert DeploymentEvent.objects.filter(deployment_id=made, to_status="rolling_back").count() == 1


def test_rollback_and_cancel_against_the_last_report(dev: World, racers: Racers) -> None:
    """Two ways to end it and the report that completes it, repeated: one of them moves it, and every move has its event."""
    world = dev
    for round_ in range(5):
        made = world.request(world.bundle(f"f{round_}:drop"))
        world.work()
        world.hosts[0].step()
        directive = world.hosts[1].heartbeat()
        path = f"{world.path}/deployments/{made}"
        rolled, cancelled, *reports = racers.race(
            post(world.bob, f"{path}/rollback", wait=0.01 * round_),
            post(world.caller("carol"), f"{path}/cancel", {"reason": "called off"}),
            *[status_report(world.hosts[1], directive, "activated")] * 3,
        )
        assert {rolled.status, cancelled.status} <= {200, 409}
        assert 200 in (rolled.status, cancelled.status)
        assert (rolled.status, cancelled.status) != (200, 200)
        assert set(statuses(reports)) <= {200, 409}
        reached = [to for _, to, _ in world.moves(made)]
        assert reached.count("rolling_back") == 1
        assert reached.count("active") <= 1
        for _ in range(2):
            world.settle()
        assert world.status(made) == "rolled_back"
        invariants.check(at_rest=True)


def test_every_report_at_once_moves_each_target_once(dev: World, racers: Racers) -> None:
    """Both agents send every report they could, in any order and twice, while the clock calls the silent unreachable."""
    world = dev
    for round_ in range(3):
        made = world.request(world.bundle(f"f{round_}:drop"), strategy={"type": "all_at_once", "max_failures": 1})
        world.work()
        reached = [(host, host.heartbeat()) for host in world.hosts]
        answers = racers.race(
            *[
                status_report(host, directive, status)
                for host, directive in reached
                for status in ("activated", "failed", "verified", "fetched", "activated", "stopped")
            ],
            {"do": "time_out"},
            everywhere=({"shift": 3600, "wait": 0.05 * round_}, {"do": "time_out", "wait": 0.05 * round_ + 0.02}),
        )
        assert set(statuses(answers)) <= {0, 200, 409}
        assert world.status(made) in ("active", "failed")
        assert AuditEvent.objects.filter(
            target=f"deployment:{made}", action__in=["deployment.active", "deployment.failed"]
        ).count() in (1, 2)
        invariants.check(at_rest=True)
        for _ in range(2):
            world.settle()
        answered = world.act(made, "rollback").status_code
        assert answered in (200, 409)
        for _ in range(2):
            world.settle()


def test_two_that_share_a_target_never_change_it_together(dev: World, racers: Racers) -> None:
    """Three deployments over two hosts, workers, reports and rollbacks at once: the history shows one at a time."""
    world = dev
    one, other = world.hosts
    first = world.roll_out(world.bundle("a:drop"))
    second = world.request(world.bundle("b:drop"), [one])
    third = world.request(world.bundle("c:drop"), [one, other])
    path = f"{world.path}/deployments"
    for _ in range(3):
        reached = [(host, host.heartbeat()) for host in world.hosts]
        racers.race(
            *[{"do": "drain"}] * 3,
            *[status_report(h, d, "activated") for h, d in reached if d.for_deployment_id],
            *[post(world.bob, f"{path}/{made}/rollback") for made in (first, second, third)],
        )
        invariants.check()
    for _ in range(4):
        world.work()
        world.settle()
    invariants.check(at_rest=True)


def test_a_lost_worker_against_the_one_that_takes_over(dev: World, racers: Racers) -> None:
    """A lease runs out while its worker still finishes: one of them ends the job, and the build happens once."""
    world = dev
    for round_ in range(3):
        bundle = world.bundle(f"f{round_}:drop")
        world.work()
        made = world.request(bundle)
        assert take_job() is not None  # and then this worker is killed
        racers.race(*[{"do": "release"}] * 3, *[{"do": "drain", "wait": 0.05}] * 3, everywhere=({"shift": 31},))
        with time_machine.travel(clock.now() + dt.timedelta(seconds=60), tick=True):
            release_expired()
        with time_machine.travel(clock.now() + dt.timedelta(seconds=120), tick=True):
            world.work()
        assert world.status(made) == "deploying"
        assert DeploymentEvent.objects.filter(deployment_id=made, to_status="deploying").count() == 1
        invariants.check(at_rest=True)
        world.settle()


def test_the_end_of_a_build_against_the_end_of_its_last_lease(dev: World, racers: Racers) -> None:
    """The worker of the last attempt hangs, is given up, and goes on all the same: built, or failed, and nothing waits for ever.

    Both hold the environment before the job: in two orders they would lock each other out.
    """
    world = dev
    for round_ in range(3):
        bundle = world.bundle(f"f{round_}:drop")
        world.work()
        made = world.request(bundle)
        Job.objects.filter(type="deploy_bundle_build", subject_id=made).update(max_attempts=1)
        racers.race(
            {"do": "drain"},
            *[{"do": "release", "wait": 0.02 * n} for n in range(8)],
            everywhere=({"shift": 31, "wait": 0.03},),
        )
        job = Job.objects.get(type="deploy_bundle_build", subject_id=made)
        assert (job.status, world.status(made)) in (("completed", "deploying"), ("dead_letter", "failed"))
        invariants.check(at_rest=True)
        world.settle()


def test_an_agent_removed_against_what_it_reports(dev: World, racers: Racers) -> None:
    """Its last report counts, or is refused; the deployment ends either way, and the other host is not held up."""
    world = dev
    world.enroll(1)
    leaving = world.hosts.pop()
    made = world.request(strategy={"type": "all_at_once", "max_failures": 1})
    world.work()
    directive = leaving.heartbeat()
    deleted, *reports = racers.race(
        {"method": "DELETE", "path": f"{world.path}/agents/{leaving.id}?force=true", "token": world.bob.token},
        *[status_report(leaving, directive, "activated")] * 2,
        post(leaving.http, f"/agents/{leaving.id}/heartbeat", {"status": "x", "version": "1", "key_set_version": 1}),
    )
    assert deleted.status == 204
    assert set(statuses(reports)) <= {200, 400, 401, 404, 409}
    world.settle()
    assert world.status(made) == "active"
    invariants.check(at_rest=True)
