"""Rollback: the matrix of what may be rolled back, from where, and to what."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import time_machine

from apps.blobs.store import FolderStore
from apps.core import clock
from apps.deployments.models import Target
from apps.deployments.services import time_out_silent_targets
from tests.deployments.world import World

pytestmark = pytest.mark.django_db


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def later(seconds: int) -> Any:
    return time_machine.travel(clock.now() + dt.timedelta(seconds=seconds), tick=True)


def test_of_the_first_deployment_stops_the_pipeline(world: World) -> None:
    made = world.roll_out()
    assert world.act(made, "rollback").json()["status"] == "rolling_back"
    assert world.current() is None
    assert [host.step() for host in world.hosts] == ["stop", "stop"]
    assert world.status(made) == "rolled_back"
    assert [host.runs for host in world.hosts] == [None, None]
    for host in world.hosts:
        assert world.bob.get(f"{world.path}/agents/{host.id}").json()["running"] is None
        assert host.step() == "stop"
    assert {t["status"] for t in world.targets(made).values()} == {"rolled_back"}


def test_after_going_back_one_goes_forward_by_deploying_again(world: World) -> None:
    bundle = world.bundle()
    made = world.roll_out(bundle)
    world.act(made, "rollback")
    world.settle()
    again = world.roll_out(bundle)
    assert {host.runs for host in world.hosts} == {again}
    assert code(world.act(made, "rollback")) == (409, "invalid_transition")


def test_that_begins_while_the_store_is_read_leaves_no_bundle_to_a_target_settled_without_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world.request()
    world.work()
    host = world.hosts[0]
    directive = host.heartbeat()
    opened: list[Any] = []

    def slow(store: FolderStore, key: str) -> Any:
        opened.append(read(store, key))
        assert world.act(made, "rollback").status_code == 200
        return opened[0]

    read = FolderStore.open
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "open", slow)
        answer = host.http.get(f"/agents/{host.id}/deployments/{directive.deployment_id}/bundle")
    assert code(answer) == (409, "not_wanted")
    assert opened[0].closed
    assert world.status(made) == "rolled_back"
    assert set(Target.objects.filter(deployment_id=made).values_list("handed_out_at", flat=True)) == {None}


@pytest.mark.parametrize("state", ["pending_approval", "approved", "denied", "building", "rolling_back", "rolled_back"])
def test_is_no_move_from_there(staging: World, state: str) -> None:
    world = staging
    made = world.request()
    if state == "denied":
        world.decide(made, "deny")
    elif state != "pending_approval":
        world.decide(made)
    if state == "building":
        from apps.deployments.services.builds import start_build

        start_build(deployment_id=world.row(made).pk, environment_id=world.env.pk)
    if state.startswith("roll"):
        world.work()
        world.settle()
        world.act(made, "rollback")
    if state == "rolled_back":
        world.settle()
    assert world.status(made) == state
    before = world.moves(made)
    answer = world.act(made, "rollback")
    assert code(answer) == (409, "invalid_transition")
    assert answer.json()["from"] == state
    assert answer.json()["to"] == "rolling_back"
    assert world.moves(made) == before


def test_of_one_that_was_taken_over_everywhere_is_superseded(world: World) -> None:
    first = world.roll_out(world.bundle("a:drop"))
    second = world.roll_out(world.bundle("b:drop"))
    assert code(world.act(first, "rollback")) == (409, "superseded")
    world.act(second, "rollback")
    assert code(world.act(first, "rollback")) == (409, "target_busy")
    world.settle()
    assert world.act(first, "rollback").status_code == 200
    assert [host.step() for host in world.hosts] == ["stop", "stop"]
    assert (world.status(first), world.status(second)) == ("rolled_back", "rolled_back")


def test_reaches_only_the_targets_where_it_is_the_latest(world: World) -> None:
    one, other = world.hosts
    first = world.roll_out(world.bundle("a:drop"))
    second = world.roll_out(world.bundle("b:drop"))
    third = world.roll_out(world.bundle("c:drop"), [one])
    assert world.act(second, "rollback").status_code == 200
    assert (one.step(), other.step()) == ("activate", "rollback")
    assert world.status(second) == "rolled_back"
    assert (one.runs, other.runs) == (third, first)
    assert world.show(first)["superseded_by"] is None
    assert world.current() == third
    # going back from the third leads past the second, which was rolled back
    assert world.act(third, "rollback").status_code == 200
    assert one.step() == "rollback"
    assert one.runs == first
    assert world.status(third) == "rolled_back"
    assert world.current() == first


def test_of_a_failed_build_there_is_nothing_to_take_back(world: World) -> None:
    from apps.deployments.services.builds import give_up_build

    made = world.request()
    from django.db import transaction

    with transaction.atomic():
        give_up_build(deployment_id=world.row(made).pk, environment_id=world.env.pk, error="boom")
    assert world.status(made) == "failed"
    assert world.show(made)["status_reason"] == "build_failed: boom"
    assert code(world.act(made, "rollback")) == (409, "nothing_to_roll_back")


def test_while_another_is_under_way_on_a_shared_target_is_busy(world: World) -> None:
    one, _ = world.hosts
    first = world.roll_out(world.bundle("a:drop"))
    second = world.request(world.bundle("b:drop"), [one])
    world.work()
    assert world.status(second) == "deploying"
    answer = world.act(first, "rollback")
    assert code(answer) == (409, "target_busy")
    assert answer.json()["deployment_id"] == second
    assert world.status(first) == "active"
    one.step()
    assert world.act(first, "rollback").status_code == 200
    world.settle()
    assert world.status(first) == "rolled_back"
    assert world.status(second) == "active"


def test_while_a_build_runs_on_a_shared_target_is_busy(world: World) -> None:
    from apps.deployments.services.builds import start_build

    first = world.roll_out(world.bundle("a:drop"))
    second = world.request(world.bundle("b:drop"))
    start_build(deployment_id=world.row(second).pk, environment_id=world.env.pk)
    answer = world.act(first, "rollback")
    assert code(answer) == (409, "target_busy")
    assert answer.json()["deployment_id"] == second
    assert world.status(first) == "active"


def test_while_deploying_settles_what_never_fetched_at_once(world: World) -> None:
    one, other = world.hosts
    first = world.roll_out(world.bundle("a:drop"))
    second = world.request(world.bundle("b:drop"))
    world.work()
    one.step()
    assert world.act(second, "rollback").json()["status"] == "rolling_back"
    targets = world.targets(second)
    assert targets[other.id]["status"] == "rolled_back"
    assert targets[one.id]["status"] == "activated"
    assert one.step() == "rollback"
    assert world.status(second) == "rolled_back"
    assert other.step() == "rollback"
    assert other.runs == first
    assert {code for *_, code in other.reported} == {200}


def test_before_any_agent_fetched_is_done_at_once(world: World) -> None:
    made = world.request()
    world.work()
    assert world.act(made, "rollback").json()["status"] == "rolled_back"
    assert [host.step() for host in world.hosts] == ["stop", "stop"]


def test_waits_for_one_that_has_the_bundle_but_did_not_report_it(world: World) -> None:
    one, other = world.hosts
    world.roll_out(world.bundle("a:drop"))
    second = world.request(world.bundle("b:drop"))
    world.work()
    one.fetch(one.heartbeat())
    assert world.act(second, "rollback").json()["status"] == "rolling_back"
    one.step()
    assert world.status(second) == "rolled_back"
    assert other.step() == "rollback"


def test_silent_ones_do_not_hold_it_up_and_still_go_back_when_they_return(world: World) -> None:
    one, other = world.hosts
    first = world.roll_out(world.bundle("a:drop"))
    second = world.roll_out(world.bundle("b:drop"), timeout_seconds=60)
    world.act(second, "rollback")
    one.step()
    assert world.status(second) == "rolling_back"
    with later(30):
        assert time_out_silent_targets(clock.now()) == 0
    with later(61):
        assert time_out_silent_targets(clock.now()) == 1
        assert world.status(second) == "rolled_back"
        assert world.targets(second)[other.id]["status"] == "unreachable"
        assert other.step() == "rollback"
        assert other.runs == first
        assert world.targets(second)[other.id]["status"] == "rolled_back"


def test_that_fails_may_be_asked_for_again(world: World) -> None:
    one, other = world.hosts
    first = world.roll_out(world.bundle("a:drop"))
    second = world.roll_out(world.bundle("b:drop"))
    world.act(second, "rollback")
    one.step(fail=True)
    assert world.status(second) == "failed"
    assert world.show(second)["status_reason"].startswith("rollback_failed")
    other.step()
    assert world.act(second, "rollback").json()["status"] == "rolling_back"
    assert one.step() == "rollback"
    assert world.status(second) == "rolled_back"
    assert {host.runs for host in world.hosts} == {first}
    assert world.current() == first


def test_of_a_failed_deployment_brings_back_those_that_had_it(world: World) -> None:
    one, other = world.hosts
    first = world.roll_out(world.bundle("a:drop"))
    second = world.request(world.bundle("b:drop"))
    world.work()
    one.step()
    other.step(fail=True)
    assert world.status(second) == "failed"
    assert (one.runs, other.runs) == (second, first)
    assert world.act(second, "rollback").json()["status"] == "rolling_back"
    assert (one.step(), other.step()) == ("rollback", "rollback")
    assert world.status(second) == "rolled_back"
    assert {host.runs for host in world.hosts} == {first}


def test_by_itself_goes_through_failed_in_one_transaction(world: World) -> None:
    one, other = world.hosts
    first = world.roll_out(world.bundle("a:drop"))
    second = world.request(world.bundle("b:drop"), strategy={"type": "all_at_once", "auto_rollback": True})
    world.work()
    one.step()
    other.step(fail=True)
    assert world.moves(second)[-2:] == [
        ("deploying", "failed", "failures_exceeded"),
        ("failed", "rolling_back", "auto_rollback"),
    ]
    world.settle()
    assert world.status(second) == "rolled_back"
    assert {host.runs for host in world.hosts} == {first}


def test_is_outside_the_cap_but_counts_in_it(world: World) -> None:
    made = world.roll_out(world.bundle("a:drop"))
    for n in range(4):
        world.request(world.bundle(f"x{n}:drop"), [world.hosts[0]])
    assert world.ask(world.bundle("y:drop")).status_code == 429
    assert world.act(made, "rollback").status_code == 200


def test_goes_back_past_one_that_this_agent_never_ran(world: World) -> None:
    one, other = world.hosts
    first = world.roll_out(world.bundle("a:drop"))
    second = world.request(
        world.bundle("b:drop"), timeout_seconds=10, strategy={"type": "all_at_once", "max_failures": 1}
    )
    world.work()
    other.step()
    with later(11):
        time_out_silent_targets(clock.now())
    assert world.status(second) == "active"
    third = world.roll_out(world.bundle("c:drop"))
    assert world.targets(third)[one.id]["previous_deployment_id"] == first
    assert world.targets(third)[other.id]["previous_deployment_id"] == second
    world.act(third, "rollback")
    world.settle()
    assert (one.runs, other.runs) == (first, second)
    assert world.current() == second


def test_where_every_agent_is_removed_there_is_nothing_to_roll_back(world: World) -> None:
    made = world.roll_out()
    for host in world.hosts:
        assert world.bob.delete(f"{world.path}/agents/{host.id}").status_code == 204
    assert code(world.act(made, "rollback")) == (409, "nothing_to_roll_back")


def test_asked_for_again_waits_for_no_agent_that_a_newer_deployment_holds(world: World) -> None:
    """The first try failed on one host; meanwhile another deployment took the second host, which never reported its rollback."""
    one, other = world.hosts
    made = world.request(world.bundle("a:drop"))
    world.work()
    for host in world.hosts:
        host.fetch(host.heartbeat())
    assert world.act(made, "cancel").status_code == 200
    assert one.send_report(made, "failed", None, None) == 200
    assert world.status(made) == "failed"
    world.roll_out(world.bundle("b:drop"), [other])
    assert world.act(made, "rollback").status_code == 200
    one.step()
    assert world.status(made) == "rolled_back"
    assert not Target.objects.filter(deployment_id=made, settled_at__isnull=True).exists()
