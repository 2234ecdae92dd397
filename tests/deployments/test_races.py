"""Two at once: exactly one wins, and the other is told so."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from apps.audit.models import AuditEvent
from apps.blobs.models import StoredBlob
from apps.core import clock
from apps.deployments.models import Deployment, DeploymentEvent, PhaseEvent
from apps.deployments.services import build, sweep_bakes
from tests import invariants
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
            lambda c=caller, m=made: c.post(f"{world.path}/deployments/{m}/cancel", {}),
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
        work = build.start_build(deployment_id=made.pk, environment_id=world.env.pk)
        if isinstance(work, build.NothingToDo):
            return work.note
        return build.finish_build(work, build.make_archive(work), complete=lambda: None)

    notes = in_threads(run, run, run)
    assert notes.count(None) == 1, notes
    assert StoredBlob.objects.count() == 1
    assert [to for _, to, _ in world.moves(str(made.pk))] == ["pending_approval", "approved", "building", "deploying"]


def test_a_cancel_against_the_build(racing: World) -> None:
    world = racing
    for n in range(4):
        made = world.row(world.request(world.bundle(f"f{n}:drop")))
        work = build.start_build(deployment_id=made.pk, environment_id=world.env.pk)
        assert isinstance(work, build.Work)
        built = build.make_archive(work)
        caller = world.tenant.caller("bob")
        cancelled, note = in_threads(
            lambda c=caller, m=made: c.post(f"{world.path}/deployments/{m.pk}/cancel", {}),
            lambda w=work, b=built: build.finish_build(w, b, complete=lambda: None),
        )
        assert cancelled.status_code == 200
        status = world.status(str(made.pk))
        assert status == ("denied" if note else "rolled_back"), (note, status)


def test_the_last_report_the_end_of_a_bake_in_two_workers_and_a_cancel(racing: World) -> None:
    """Whatever comes first: no phase begins twice, none after it was called off, and everybody ends in one place."""
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
            # the bake is over, and nobody looked yet
            time.sleep(max(0.0, (world.row(made).bake_ends_at - clock.now()).total_seconds()))
        caller = world.tenant.caller("bob")
        answers = in_threads(
            lambda c=caller, m=made: c.post(f"{world.path}/deployments/{m}/cancel", {}),
            lambda: sweep_bakes(clock.now()),
            lambda: sweep_bakes(clock.now()),
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
        ended = in_threads(*[lambda: sweep_bakes(clock.now()) for _ in range(4)])
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
        answers = in_threads(lambda h=one: h.heartbeat({"ok": False}), lambda: sweep_bakes(clock.now()))
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
