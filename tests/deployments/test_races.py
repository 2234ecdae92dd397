"""Two at once: exactly one wins, and the other gets a conflict."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from typing import Any

import pytest
from django.db import transaction

from apps.audit.models import AuditEvent
from apps.blobs.models import StoredBlob
from apps.core import clock
from apps.deployments.models import Deployment, DeploymentEvent, PhaseEvent, Target
from apps.deployments.services import builds, end_due_bakes, record_bundle_download, reports
from tests import invariants
from tests.deployments.test_key_revocation import follow_keys, revoke, rotate
from tests.deployments.world import World
from tests.support import in_threads

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def racing(transactional_db: None, world: World) -> World:
    return world


def codes(answers: list[Any]) -> Counter[int]:
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return Counter(answer.status_code for answer in answers)


def test_the_cap_is_exact(racing: World) -> None:
    world = racing
    bundles = [world.bundle(f"f{n}:drop") for n in range(8)]
    callers = [world.tenant.caller("bob") for _ in bundles]

    def ask(caller: Any, bundle: str) -> Any:
        return caller.post(f"{world.path}/deployments", {"bundle_id": bundle, "targets": {"all": True}})

    answers = in_threads(*[lambda c=c, b=b: ask(c, b) for c, b in zip(callers, bundles, strict=True)])
    assert codes(answers) == {201: 4, 429: 4}
    assert Deployment.objects.in_flight().count() == 4


def test_the_same_bundle_goes_in_once(racing: World) -> None:
    world = racing
    bundle = world.bundle()
    callers = [world.tenant.caller("bob") for _ in range(4)]
    body = {"bundle_id": bundle, "targets": {"all": True}}
    answers = in_threads(*[lambda c=c: c.post(f"{world.path}/deployments", body) for c in callers])
    assert codes(answers) == {201: 1, 409: 3}


def test_a_rollback_waits_for_a_target_that_is_just_being_handed_its_bundle(racing: World) -> None:
    world = racing
    made = world.request()
    world.work()
    noted, host = threading.Event(), world.hosts[0]
    caller = world.tenant.caller("bob")

    def hand_out() -> None:
        with transaction.atomic():
            assert record_bundle_download(agent_id=uuid.UUID(host.id), deployment_id=uuid.UUID(made))
            noted.set()
            time.sleep(0.5)  # the rollback has looked by then, or waits

    def roll_back() -> Any:
        assert noted.wait(30)
        return caller.post(f"{world.path}/deployments/{made}/rollback", {"reason": "called off"})

    handed, asked = in_threads(hand_out, roll_back)
    assert (handed, asked.status_code) == (None, 200)
    assert world.status(made) == "rolling_back"
    settled = dict(Target.objects.filter(deployment_id=made).values_list("agent_id", "settled_at"))
    assert settled.pop(uuid.UUID(host.id)) is None
    assert None not in settled.values()


@pytest.mark.parametrize("ends", ["a cancel", "a failure with auto_rollback"])
def test_a_rollout_ends_although_its_bundle_is_just_being_handed_out_and_the_way_back_is_revoked(
    racing: World, ends: str
) -> None:
    world = racing
    host, other = world.hosts
    world.roll_out()
    former = rotate(world)
    follow_keys(world)
    strategy = {"type": "all_at_once", "max_failures": 1, "auto_rollback": True}
    made = world.request(world.bundle("a:drop"), strategy=strategy)
    world.work()
    revoke(world, former)
    follow_keys(world)
    Target.objects.filter(deployment_id=made, agent_id=host.pk).update(status="unreachable", settled_at=clock.now())
    directive = other.heartbeat()
    noted, caller = threading.Event(), world.tenant.caller("bob")

    def hand_out() -> None:
        with transaction.atomic():
            assert record_bundle_download(agent_id=host.pk, deployment_id=uuid.UUID(made))
            noted.set()
            time.sleep(0.5)  # the end has looked by then, or waits

    def end() -> int:
        assert noted.wait(30)
        if ends == "a cancel":
            return int(caller.post(f"{world.path}/deployments/{made}/cancel", {"reason": "called off"}).status_code)
        return other.report(directive, "failed", reason="bad_health: it did not start")

    assert in_threads(hand_out, end) == [None, 200]
    assert world.status(made) == "failed"
    assert "signing key" in world.show(made)["status_reason"]


def test_a_cancel_against_the_report_that_completes_it(racing: World) -> None:
    world = racing
    outcomes: Counter[str] = Counter()
    for n in range(6):
        made = world.request(world.bundle(f"f{n}:drop"))
        world.work()
        world.hosts[0].step()
        directive = world.hosts[1].heartbeat()
        caller = world.tenant.caller("bob")
        cancelled, reported = in_threads(
            lambda c=caller, m=made: c.post(f"{world.path}/deployments/{m}/cancel", {"reason": "called off"}),
            lambda d=directive: world.hosts[1].report(d, "activated"),
        )
        status = world.status(made)
        outcomes[status] += 1
        if status == "active":
            assert (cancelled.status_code, reported) == (409, 200)
            world.act(made, "rollback")
        else:
            assert status in ("rolling_back", "rolled_back")
            assert cancelled.status_code == 200
            assert reported in (200, 409)
        world.settle()
        world.settle()
        assert world.status(made) == "rolled_back"
        moves = world.moves(made)
        assert all(moves[i][1] == moves[i + 1][0] for i in range(len(moves) - 1)), moves
    assert sum(outcomes.values()) == 6


def test_a_vote_against_the_report_that_moves_its_base_decides_nothing(
    transactional_db: None, staging: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is written and not committed when the vote begins: without the environment's lock it would not be seen."""
    world = staging
    first = world.request(world.bundle("a:drop"), [world.hosts[0]])
    world.decide(first)
    world.work()
    second = world.request(world.bundle("b:drop"), [world.hosts[0]])
    shown, directive = world.approval(second), world.hosts[0].heartbeat()
    carol, written = world.tenant.caller("carol"), threading.Event()
    point = reports.fault_point

    def written_and_not_committed(name: str) -> None:
        if name == "deployments.report.before_commit":
            written.set()
            time.sleep(0.5)  # the vote has looked by then, or waits
        point(name)

    monkeypatch.setattr(reports, "fault_point", written_and_not_committed)

    def vote() -> Any:
        assert written.wait(30)
        body = {"comment": "seen", "shown_digest": shown["shown_digest"]}
        return carol.post(f"{world.path}/approvals/{shown['id']}/approve", body)

    reported, voted = in_threads(lambda: world.hosts[0].report(directive, "failed", reason="bad_health: no"), vote)
    assert (reported, world.status(first)) == (200, "failed")
    assert (voted.status_code, voted.json()["code"]) == (409, "stale_decision")
    assert world.status(second) == "pending_approval"


def test_two_last_reports_make_it_active_once(racing: World) -> None:
    world = racing
    made = world.request()
    world.work()
    directives = [(host, host.heartbeat()) for host in world.hosts]
    answers = in_threads(*[lambda h=h, d=d: h.report(d, "activated") for h, d in directives for _ in range(3)])
    assert answers == [200] * 6
    assert world.status(made) == "active"
    assert DeploymentEvent.objects.filter(deployment_id=made, to_status="active").count() == 1
    assert AuditEvent.objects.filter(target=f"deployment:{made}", action="deployment.active").count() == 1


def test_two_rollbacks_are_one(racing: World) -> None:
    world = racing
    made = world.roll_out()
    callers = [world.tenant.caller("bob") for _ in range(4)]
    answers = in_threads(*[lambda c=c: c.post(f"{world.path}/deployments/{made}/rollback", {}) for c in callers])
    assert codes(answers) == {200: 1, 409: 3}


def test_two_workers_with_one_build_assign_it_once(racing: World) -> None:
    world = racing
    made = world.row(world.request())

    def run() -> str | None:
        work = builds.start_build(deployment_id=made.pk, environment_id=world.env.pk)
        if isinstance(work, builds.NothingToDo):
            return work.note
        return builds.finish_build(work, builds.make_archive(work), complete=lambda: None)

    notes = in_threads(run, run, run)
    assert notes.count(None) == 1, notes
    assert StoredBlob.objects.count() == 1
    assert [to for _, to, _ in world.moves(str(made.pk))] == ["pending_approval", "approved", "building", "deploying"]


def test_a_cancel_against_the_build(racing: World) -> None:
    world = racing
    for n in range(4):
        made = world.row(world.request(world.bundle(f"f{n}:drop")))
        work = builds.start_build(deployment_id=made.pk, environment_id=world.env.pk)
        assert isinstance(work, builds.Work)
        built = builds.make_archive(work)
        caller = world.tenant.caller("bob")
        cancelled, note = in_threads(
            lambda c=caller, m=made: c.post(f"{world.path}/deployments/{m.pk}/cancel", {"reason": "called off"}),
            lambda w=work, b=built: builds.finish_build(w, b, complete=lambda: None),
        )
        assert cancelled.status_code == 200
        status = world.status(str(made.pk))
        assert status == ("denied" if note else "rolled_back"), (note, status)


def test_the_last_report_the_end_of_a_bake_in_two_workers_and_a_cancel(racing: World) -> None:
    """Whatever comes first: no phase begins twice, none after it was cancelled, and all agents end in one state."""
    world = racing
    outcomes: Counter[str] = Counter()
    phases = [{"percent": 50, "bake_seconds": 1}, {"percent": 100, "bake_seconds": 0}]
    for n in range(5):
        made = world.request(world.bundle(f"f{n}:drop"), strategy={"type": "phased", "phases": phases})
        world.work()
        one, other = world.hosts
        directive = one.heartbeat()
        if n % 2:
            one.step()
            # the bake is over, and the chore has not run yet
            time.sleep(max(0.0, (world.row(made).bake_ends_at - clock.now()).total_seconds()))
        caller = world.tenant.caller("bob")
        answers = in_threads(
            lambda c=caller, m=made: c.post(f"{world.path}/deployments/{m}/cancel", {"reason": "called off"}),
            lambda: end_due_bakes(clock.now()),
            lambda: end_due_bakes(clock.now()),
            lambda h=one, d=directive: h.report(d, "activated"),
        )
        assert not [a for a in answers if isinstance(a, BaseException)], answers
        assert answers[0].status_code == 200
        began = PhaseEvent.objects.filter(deployment_id=made, mark="started").values_list("phase", flat=True)
        assert len(began) == len(set(began))
        outcomes[f"{len(began)} phases"] += 1
        if len(began) == 1:
            assert world.targets(made)[other.id]["status"] == "pending"
        world.settle()
        world.settle()
        assert world.status(made) == "rolled_back"
        assert [host.runs for host in world.hosts] == [None, None]
        invariants.check()
    assert sum(outcomes.values()) == 5


def test_two_workers_end_a_bake_once(racing: World) -> None:
    world = racing
    phases = [{"percent": 50, "bake_seconds": 1}, {"percent": 100, "bake_seconds": 1}]
    made = world.request(strategy={"type": "phased", "phases": phases})
    world.work()
    for host in world.hosts:
        host.step()
        time.sleep(max(0.0, (world.row(made).bake_ends_at - clock.now()).total_seconds()))
        ended = in_threads(*[lambda: end_due_bakes(clock.now()) for _ in range(4)])
        assert sum(ended) == 1, ended
    assert world.status(made) == "active"
    assert PhaseEvent.objects.filter(deployment_id=made).count() == 6
    invariants.check()


def test_an_unhealthy_heartbeat_against_the_end_of_the_bake(racing: World) -> None:
    world = racing
    phases = [{"percent": 50, "bake_seconds": 1}, {"percent": 100, "bake_seconds": 0}]
    for n in range(4):
        made = world.request(world.bundle(f"f{n}:drop"), strategy={"type": "phased", "phases": phases})
        world.work()
        one, other = world.hosts
        one.step()
        time.sleep(max(0.0, (world.row(made).bake_ends_at - clock.now()).total_seconds()))
        answers = in_threads(lambda h=one: h.heartbeat({"ok": False}), lambda: end_due_bakes(clock.now()))
        assert not [a for a in answers if isinstance(a, BaseException)], answers
        status, phase = world.status(made), world.show(made)["phase"]
        if status == "failed":
            assert phase == 0
            assert world.targets(made)[other.id]["status"] == "pending"
        else:
            # the bake had ended before the word came: outside of a bake it is on record and no more
            assert (status, phase) == ("deploying", 1)
        assert world.act(made, "rollback").status_code == 200
        world.settle()
        world.settle()
        assert world.status(made) == "rolled_back"
        invariants.check()
