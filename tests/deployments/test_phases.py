"""Phased rollouts: who gets a directive when, what a bake decides, how they stop, and who is never touched."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import time_machine
from django.db import IntegrityError, connection, transaction

from apps.agents.models import Agent
from apps.audit.models import AuditEvent
from apps.core import clock, wake
from apps.deployments.models import Deployment, DeploymentEvent, PhaseEvent, Target
from apps.deployments.services import bakes, end_due_bakes, time_out_silent_targets
from tests import invariants
from tests.deployments.world import Host, World
from tests.support import run_due_chores

pytestmark = pytest.mark.django_db

BAKE = 30


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def plan(*percents: int, bake: int = BAKE, **more: Any) -> dict[str, Any]:
    return {"type": "phased", "phases": [{"percent": p, "bake_seconds": bake} for p in percents], **more}


class Clock:
    """The one clock, moved by hand."""

    def __init__(self, traveller: Any) -> None:
        self._traveller = traveller

    def on(self, seconds: float) -> None:
        self._traveller.shift(dt.timedelta(seconds=seconds))

    def bake(self, world: World, seconds: float = BAKE) -> None:
        """The bake time passes with all agents healthy, and the chore runs."""
        self.on(seconds)
        for host in world.hosts:
            host.heartbeat()
        end_due_bakes(clock.now())


@pytest.fixture
def time(db: None) -> Any:
    with time_machine.travel(dt.datetime.now(dt.UTC), tick=True) as traveller:
        yield Clock(traveller)


@pytest.fixture(autouse=True)
def _invariants(db: None) -> Iterator[None]:
    """However a test leaves things, what must always hold holds."""
    yield
    invariants.check()


@pytest.fixture
def four(world: World) -> World:
    """Four hosts: with 25, 50 and 100 percent one, one and two."""
    world.enroll(2)
    return world


def untouched(world: World, deployment: str, host: Host) -> bool:
    """True if `host` never had a directive for `deployment`, and its target is exactly as it was made."""
    target = world.target(deployment, host)
    return (
        (target.status, target.report) == ("pending", {})
        and (target.sequence, target.phase_started_at, target.settled_at, target.rollback_at) == (None,) * 4
        and target.updated_at is None
    )


@pytest.mark.postgres
class TestPhases:
    """One after the other."""

    def test_which_target_is_in_which_phase_is_fixed_when_it_is_asked_for(self, four: World) -> None:
        named_backwards = {"agent_ids": [host.id for host in reversed(four.hosts)]}
        for targets in ({"all": True}, named_backwards):
            made = four.request(
                four.bundle(f"f{len(targets)}{next(iter(targets))}:drop"), targets, strategy=plan(25, 50, 100)
            )
            shown = four.targets(made)
            assert [shown[host.id]["phase"] for host in four.hosts] == [0, 1, 2, 2]
        four.enroll(1)
        assert len(four.targets(made)) == 4
        with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("UPDATE deployments_target SET phase = 0")

    def test_each_gets_its_directive_only_when_its_phase_begins(self, four: World, time: Clock) -> None:
        before = {host.id: host.heartbeat() for host in four.hosts}
        made = four.request(strategy=plan(25, 50, 100))
        four.work()
        one, two, three, other = four.hosts
        assert [host.step() for host in (two, three, other)] == ["none"] * 3
        assert one.step() == "activate"
        assert four.phases(made) == ["baking", "waiting", "waiting"]
        time.bake(four)
        assert four.phases(made) == ["passed", "deploying", "waiting"]
        assert [host.step() for host in (three, other)] == ["none"] * 2
        assert two.step() == "activate"
        time.bake(four)
        for host in (three, other):
            assert host.last_seq == before[host.id].directive_seq, "its directive changed before its phase"
        assert [host.step() for host in (three, other)] == ["activate"] * 2
        assert four.status(made) == "deploying"
        time.bake(four)
        assert four.status(made) == "active"
        assert four.phases(made) == ["passed"] * 3
        assert {host.runs for host in four.hosts} == {made}
        assert four.current() == made

    def test_what_it_is_about_is_shown(self, four: World, time: Clock) -> None:
        made = four.request(strategy=plan(50, 100, bake=BAKE))
        shown = four.show(made)
        assert (shown["phase"], shown["bake_ends_at"]) == (None, None)
        assert [p["targets"]["total"] for p in shown["phases"]] == [2, 2]
        assert four.phases(made) == ["waiting", "waiting"]
        four.work()
        for host in four.hosts[:2]:
            host.step()
        shown = four.show(made)
        assert shown["phase"] == 0
        first = shown["phases"][0]
        assert (first["status"], first["targets"]["activated"]) == ("baking", 2)
        assert shown["bake_ends_at"] == first["bake_ends_at"]
        ends = dt.datetime.fromisoformat(shown["bake_ends_at"])
        assert ends - dt.datetime.fromisoformat(shown["bake_started_at"]) == dt.timedelta(seconds=BAKE)
        listed = four.bob.get(f"{four.path}/deployments").json()["results"]
        assert next(row for row in listed if row["id"] == made) == shown
        time.bake(four)
        for host in four.hosts[2:]:
            host.step()
        time.bake(four)
        shown = four.show(made)
        assert (shown["status"], shown["phase"], shown["bake_started_at"], shown["bake_ends_at"]) == (
            "active",
            1,
            None,
            None,
        )
        assert all(p["passed_at"] for p in shown["phases"])

    def test_every_phase_is_on_record_and_the_events_stay_a_chain_of_statuses(self, four: World, time: Clock) -> None:
        made = four.request(strategy=plan(50, 100))
        four.work()
        for host in four.hosts[:2]:
            host.step()
        time.bake(four)
        for host in four.hosts[2:]:
            host.step()
        time.bake(four)
        moves = four.moves(made)
        assert [to for _, to, _ in moves] == ["pending_approval", "approved", "building", "deploying", "active"]
        assert all(a[1] == b[0] for a, b in itertools.pairwise(moves))
        marks = [(e.phase, e.mark) for e in PhaseEvent.objects.order_by("pk")]
        assert marks == [(n, mark) for n in (0, 1) for mark in ("started", "baking", "passed")]
        audited = AuditEvent.objects.filter(target=f"deployment:{made}", action__startswith="deployment.phase_")
        assert [(a.details["phase"], a.action.rsplit("_", 1)[1]) for a in audited.order_by("pk")] == marks
        details = list(PhaseEvent.objects.order_by("pk").values_list("detail", flat=True))
        assert details[::3] == ["2 assigned"] * 2
        assert all(each.startswith("until ") for each in details[1::3])
        assert details[2::3] == ["2 activated"] * 2, "those of the phase"
        assert [a.details["detail"] for a in audited.order_by("pk")] == details
        assert [a.details["percent"] for a in audited.order_by("pk")] == [50] * 3 + [100] * 3
        with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("UPDATE deployments_phaseevent SET phase = 5")

    def test_all_at_once_has_no_phases(self, world: World) -> None:
        made = world.roll_out()
        assert world.show(made)["phases"] == []
        assert not PhaseEvent.objects.exists()

    def test_without_a_bake_the_next_begins_with_the_last_report(self, four: World) -> None:
        made = four.request(strategy=plan(25, 50, 100, bake=0))
        four.work()
        for number, host in enumerate(four.hosts[:2]):
            assert four.show(made)["phase"] == number
            host.step()
        assert four.show(made)["phase"] == 2
        four.settle(*four.hosts[2:])
        assert four.status(made) == "active"
        assert not PhaseEvent.objects.filter(mark="baking").exists()

    def test_a_phase_that_adds_no_agent_still_bakes(self, world: World, time: Clock) -> None:
        made = world.request(strategy=plan(10, 20, 100))
        world.work()
        assert [world.targets(made)[h.id]["phase"] for h in world.hosts] == [0, 2]
        world.hosts[0].step()
        time.bake(world)
        assert world.phases(made) == ["passed", "baking", "waiting"]
        time.bake(world)
        assert world.phases(made) == ["passed", "passed", "deploying"]
        world.hosts[1].step()
        time.bake(world)
        assert world.status(made) == "active"

    def test_the_worker_ends_bakes_by_itself(self, world: World, time: Clock) -> None:
        made = world.request(strategy=plan(50, 100))
        world.work()
        world.hosts[0].step()
        run_due_chores()
        assert world.phases(made) == ["baking", "waiting"]
        time.on(BAKE + 1)
        world.hosts[0].heartbeat()
        run_due_chores()
        assert world.phases(made) == ["passed", "deploying"]
        events = PhaseEvent.objects.count()
        time.on(2)
        run_due_chores()
        assert PhaseEvent.objects.count() == events

    def test_previous_is_what_was_confirmed_when_the_phase_began(self, world: World, time: Clock) -> None:
        first = world.roll_out(world.bundle("a:drop"))
        made = world.request(world.bundle("b:drop"), strategy=plan(50, 100))
        world.work()
        one, other = (world.targets(made)[host.id] for host in world.hosts)
        assert (one["previous_deployment_id"], other["previous_deployment_id"]) == (first, None)
        world.hosts[0].step()
        time.bake(world)
        assert world.targets(made)[world.hosts[1].id]["previous_deployment_id"] == first


class TestFailing:
    """It stops where it is."""

    def test_one_too_many_stops_it_in_its_phase(self, four: World) -> None:
        first = four.roll_out(four.bundle("a:drop"))
        seqs = {host.id: host.heartbeat().directive_seq for host in four.hosts}
        made = four.request(four.bundle("b:drop"), strategy=plan(50, 100))
        four.work()
        one, two, three, other = four.hosts
        one.step()
        two.step(fail=True)
        assert four.status(made) == "failed"
        assert four.phases(made) == ["stopped", "untouched"]
        for host in (three, other):
            assert host.heartbeat().directive_seq == seqs[host.id]
            assert host.runs == first
            assert untouched(four, made, host)
        assert (one.step(), two.step()) == ("activate", "rollback")
        # by hand it goes back where it was, and nowhere else
        assert four.act(made, "rollback").status_code == 200
        assert (one.step(), two.step()) == ("rollback", "rollback")
        assert four.status(made) == "rolled_back"
        assert {host.runs for host in four.hosts} == {first}
        for host in (three, other):
            assert host.heartbeat().directive_seq == seqs[host.id]
            assert untouched(four, made, host)
        assert four.show(first)["superseded_by"] is None
        assert four.current() == first

    def test_by_itself_it_goes_back_only_where_it_was(self, four: World) -> None:
        first = four.roll_out(four.bundle("a:drop"))
        made = four.request(four.bundle("b:drop"), strategy=plan(50, 100, auto_rollback=True))
        four.work()
        one, two, three, other = four.hosts
        one.step()
        two.step(fail=True)
        assert four.moves(made)[-2:] == [
            ("deploying", "failed", "failures_exceeded"),
            ("failed", "rolling_back", "auto_rollback"),
        ]
        # an agent that had no directive does not hold it up, and can be removed
        assert four.bob.delete(f"{four.path}/agents/{other.id}").status_code == 204
        four.settle(one, two)
        assert four.status(made) == "rolled_back"
        # the reason is still shown when all is over
        assert "bad_health: it did not start" in four.show(made)["status_reason"]
        assert four.targets(made)[two.id]["report"]["failure"] == "bad_health: it did not start"
        assert {host.runs for host in (one, two, three)} == {first}
        assert untouched(four, made, three)

    def test_few_enough_let_it_go_on(self, four: World, time: Clock) -> None:
        made = four.request(strategy=plan(50, 100, max_failures=1))
        four.work()
        one, two, three, other = four.hosts
        one.step(fail=True)
        two.step()
        time.bake(four)
        assert four.show(made)["phase"] == 1
        three.step(fail=True)
        assert four.status(made) == "failed"
        assert other.step() == "stop"

    def test_silence_counts_from_the_beginning_of_its_phase_and_not_in_a_bake(self, four: World, time: Clock) -> None:
        made = four.request(strategy=plan(50, 100, bake=600), timeout_seconds=60)
        four.work()
        for host in four.hosts[:2]:
            host.step()
        time.on(500)
        assert time_out_silent_targets(clock.now()) == 0
        time.bake(four, 101)
        assert four.show(made)["phase"] == 1
        time.on(20)
        assert time_out_silent_targets(clock.now()) == 0
        four.hosts[2].step()
        time.on(41)
        assert time_out_silent_targets(clock.now()) == 1
        assert four.status(made) == "failed"
        assert four.targets(made)[four.hosts[3].id]["status"] == "unreachable"

    def test_an_agent_that_goes_before_its_phase_fails_its_target(self, four: World, time: Clock) -> None:
        made = four.request(strategy=plan(50, 100, max_failures=1))
        four.work()
        last = four.hosts.pop()
        path = f"{four.path}/agents/{last.id}"
        assert code(four.bob.delete(path)) == (409, "agent_in_flight")
        assert four.bob.delete(f"{path}?force=true").status_code == 204
        assert four.status(made) == "deploying"
        for host in four.hosts[:2]:
            host.step()
        time.bake(four)
        four.hosts[2].step()
        time.bake(four)
        assert four.status(made) == "active"

    def test_too_many_removed_before_it_began_fails_it_before_any_directive(self, staging: World) -> None:
        made = staging.request(strategy=plan(50, 100))
        removed, stays = staging.hosts
        assert staging.bob.delete(f"{staging.path}/agents/{removed.id}?force=true").status_code == 204
        assert staging.decide(made).status_code == 200
        staging.work()
        assert staging.status(made) == "failed"
        assert staging.phases(made) == ["untouched", "untouched"]
        assert stays.step() == "none"
        assert untouched(staging, made, stays)
        assert code(staging.act(made, "rollback")) == (409, "nothing_to_roll_back")


class TestPolls:
    """Which waiting agents are notified."""

    def test_those_whose_directive_changes_and_no_other(
        self, four: World, time: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        woken: list[str] = []
        monkeypatch.setattr(wake, "notify", lambda *channels: woken.extend(channels))

        def since_then() -> set[str]:
            names = {f"agent:{host.id}": name for host, name in zip(four.hosts, "abcd", strict=True)}
            found = {names[channel] for channel in woken if channel.startswith("agent:")}
            woken.clear()
            return found

        first = four.request(four.bundle("a:drop"), strategy=plan(50, 100))
        four.work()
        assert since_then() == {"a", "b"}
        four.hosts[0].step(fail=True)
        assert four.status(first) == "failed"
        assert since_then() == {"a", "b"}
        second = four.request(four.bundle("b:drop"), strategy=plan(50, 100, max_failures=2))
        four.work()
        assert since_then() == {"a", "b"}
        four.hosts[0].step()
        four.hosts[0].heartbeat({"ok": False})
        four.hosts[1].step()
        assert four.phases(second)[0] == "baking"
        since_then()
        time.on(BAKE)
        end_due_bakes(clock.now())
        assert since_then() == {"a", "c", "d"}, "one fails at the end of the bake, two begin"
        directive = four.hosts[2].heartbeat()
        since_then()
        assert four.hosts[2].report(directive, "failed") == 200
        assert since_then() == {"c"}
        assert four.act(second, "cancel").status_code == 200
        assert since_then() == {"a", "b", "c", "d"}


class TestBakes:
    """Healthy heartbeats, or none."""

    @pytest.fixture
    def baking(self, four: World, time: Clock) -> tuple[World, str, Clock]:
        """Two of four run it and bake; a first deployment runs on all."""
        four.first = four.roll_out(four.bundle("a:drop"))  # type: ignore[attr-defined]
        made = four.request(four.bundle("b:drop"), strategy=plan(50, 100))
        four.work()
        four.settle(*four.hosts[:2])
        assert four.phases(made) == ["baking", "waiting"]
        return four, made, time

    def test_an_unhealthy_heartbeat_is_a_failure_at_once(self, baking: tuple[World, str, Clock]) -> None:
        world, made, _ = baking
        one, two, three, _other = world.hosts
        one.heartbeat({"ok": False, "detail": "it leaks"})
        assert world.status(made) == "failed"
        target = world.targets(made)[one.id]
        assert (target["status"], target["report"]["reason"]) == ("failed", "unhealthy: it leaks")
        reason = f"failures_exceeded: 2 pending, 1 activated, 1 failed; {target['agent_name']}: unhealthy: it leaks"
        assert world.show(made)["status_reason"] == reason
        assert world.phases(made) == ["stopped", "untouched"]
        assert untouched(world, made, three)
        assert one.step() == "rollback"
        assert one.runs == world.first  # type: ignore[attr-defined]
        assert two.step() == "activate"

    def test_a_bake_that_ends_while_the_heartbeat_waits_for_the_lock_is_not_failed_by_it(
        self, baking: tuple[World, str, Clock], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world, made, _ = baking
        lock = bakes.lock_deployment

        def ended_first(*given: Any) -> Any:
            Deployment.objects.filter(pk=made).update(bake_started_at=None, bake_ends_at=None)
            return lock(*given)

        monkeypatch.setattr(bakes, "lock_deployment", ended_first)
        world.hosts[0].heartbeat({"ok": False, "detail": "it leaks"})
        assert (world.status(made), world.targets(made)[world.hosts[0].id]["status"]) == ("deploying", "activated")

    def test_a_status_word_is_as_good(self, baking: tuple[World, str, Clock]) -> None:
        world, made, _ = baking
        host = world.hosts[0]
        running = host.running
        assert running is not None
        body = {"status": "unhealthy", "version": "1", "key_set_version": 1}
        body["running"] = {"deployment_id": made, "bundle_sha256": running.sha256, "sequence": running.sequence}
        assert host.http.post(f"/agents/{host.id}/heartbeat", body).status_code == 200
        assert world.status(made) == "failed"

    def test_a_report_that_it_failed_is_one_too(self, baking: tuple[World, str, Clock]) -> None:
        world, made, _ = baking
        host = world.hosts[0]
        assert host.report(host.heartbeat(), "failed", reason="pipeline_crashed: exit 3") == 200
        assert world.status(made) == "failed"
        assert world.targets(made)[host.id]["report"]["reason"].startswith("pipeline_crashed")

    def test_within_what_is_tolerated_it_goes_on_without_that_one(self, four: World, time: Clock) -> None:
        made = four.request(strategy=plan(50, 100, max_failures=1))
        four.work()
        one, two, three, other = four.hosts
        four.settle(one, two)
        one.heartbeat({"ok": False})
        assert four.phases(made) == ["baking", "waiting"]
        assert one.step() == "stop"
        time.bake(four)
        four.settle(three, other)
        time.bake(four)
        assert four.status(made) == "active"
        assert {host.runs for host in (two, three, other)} == {made}

    def test_of_an_agent_whose_phase_is_to_come_it_means_nothing(self, baking: tuple[World, str, Clock]) -> None:
        world, made, _ = baking
        world.hosts[2].heartbeat({"ok": False})
        assert world.phases(made) == ["baking", "waiting"]

    def test_of_one_that_baked_before_it_counts_in_a_later_bake(self, baking: tuple[World, str, Clock]) -> None:
        world, made, time = baking
        time.bake(world)
        world.settle(*world.hosts[2:])
        assert world.phases(made) == ["passed", "baking"]
        world.hosts[0].heartbeat({"ok": False})
        assert world.status(made) == "failed"

    def test_outside_of_a_bake_it_is_on_record_and_no_more(self, four: World, time: Clock) -> None:
        made = four.request(strategy=plan(50, 100, bake=0))
        four.work()
        one, two, *_ = four.hosts
        one.step()
        one.heartbeat({"ok": False, "detail": "warming up"})
        assert four.status(made) == "deploying"
        agent = four.bob.get(f"{four.path}/agents/{one.id}").json()
        assert (agent["healthy"], agent["health_detail"]) == (False, "warming up")
        two.step()
        assert four.show(made)["phase"] == 1
        one.heartbeat({"ok": False})
        four.settle(*four.hosts[2:])
        one.heartbeat({"ok": False})
        assert four.status(made) == "active"

    def test_one_that_speaks_of_what_ran_before_means_nothing(self, baking: tuple[World, str, Clock]) -> None:
        world, made, _ = baking
        host = world.hosts[0]
        body = {"status": "running", "version": "1", "key_set_version": 1, "health": {"ok": False}}
        body["running"] = {"deployment_id": world.first, "bundle_sha256": "a" * 64, "sequence": 1}  # type: ignore[attr-defined]
        assert host.http.post(f"/agents/{host.id}/heartbeat", body).status_code == 200
        assert world.phases(made) == ["baking", "waiting"]

    def test_what_was_unhealthy_before_it_changed_is_well_until_it_reports_otherwise(
        self, four: World, time: Clock
    ) -> None:
        four.roll_out(four.bundle("a:drop"))
        four.hosts[0].heartbeat({"ok": False, "detail": "the old one leaks"})
        made = four.request(four.bundle("b:drop"), strategy=plan(25, 100))
        four.work()
        host = four.hosts[0]
        directive = host.heartbeat({"ok": False, "detail": "the old one leaks"})
        host.running = host.fetch(directive)
        assert host.report(directive, "activated") == 200
        assert four.bob.get(f"{four.path}/agents/{host.id}").json()["healthy"] is True
        time.on(BAKE)
        end_due_bakes(clock.now())
        assert four.show(made)["phase"] == 1

    def test_unhealthy_before_the_bake_and_silent_since_does_not_pass(self, four: World, time: Clock) -> None:
        made = four.request(strategy=plan(50, 100))
        four.work()
        one, two, *_ = four.hosts
        one.step()
        one.heartbeat({"ok": False, "detail": "never came up"})
        two.step()
        assert four.phases(made) == ["baking", "waiting"]
        time.on(BAKE)
        end_due_bakes(clock.now())
        assert four.status(made) == "failed"
        assert four.targets(made)[one.id]["report"]["reason"] == "unhealthy: never came up"

    def test_one_that_fell_silent_holds_it_and_then_has_failed(self, baking: tuple[World, str, Clock]) -> None:
        world, made, time = baking
        one, two, *rest = world.hosts
        one.heartbeat()
        time.on(300)
        for host in (two, *rest):
            host.heartbeat()
        for _ in range(2):
            end_due_bakes(clock.now())
            assert world.phases(made) == ["baking", "waiting"]
        time.on(600)
        for host in (two, *rest):
            host.heartbeat()
        end_due_bakes(clock.now())
        assert world.status(made) == "failed"
        assert world.targets(made)[one.id]["report"]["reason"].startswith("silent")
        assert one.step() == "rollback"

    def test_a_new_heartbeat_lets_it_go_on(self, baking: tuple[World, str, Clock]) -> None:
        world, made, time = baking
        world.hosts[0].heartbeat()
        time.on(300)
        end_due_bakes(clock.now())
        assert world.phases(made) == ["baking", "waiting"]
        for host in world.hosts:
            host.heartbeat()
        end_due_bakes(clock.now())
        assert world.phases(made) == ["passed", "deploying"]

    def test_a_bake_that_has_not_been_ended_yet_still_counts(self, baking: tuple[World, str, Clock]) -> None:
        world, made, time = baking
        time.on(BAKE + 20)
        world.hosts[0].heartbeat({"ok": False})
        end_due_bakes(clock.now())
        assert world.status(made) == "failed"

    @pytest.mark.postgres
    def test_a_healthy_heartbeat_asks_the_database_nothing_of_deployments(
        self, baking: tuple[World, str, Clock], django_assert_num_queries: Any
    ) -> None:
        from apps.agents.registry import desired_source

        world, _, _ = baking
        agent = Agent.objects.get(pk=world.hosts[0].id)
        with django_assert_num_queries(0):
            desired_source().heartbeat_seen(agent, True, None)


class TestThoseThatWereAway:
    """Unreachable, and back again."""

    def away(self, world: World, time: Clock, **strategy: Any) -> str:
        """The first host is unreachable in phase 0."""
        made = world.request(world.bundle("b:drop"), strategy=plan(50, 100, bake=0, **strategy), timeout_seconds=60)
        world.work()
        world.hosts[1].step()
        time.on(61)
        time_out_silent_targets(clock.now())
        shown = world.targets(made)[world.hosts[0].id]["status"]
        # one that never fetched has nothing to go back from
        assert shown == ("rolled_back" if strategy.get("auto_rollback") else "unreachable")
        return made

    def test_back_in_a_later_phase_it_gets_it(self, four: World, time: Clock) -> None:
        made = self.away(four, time, max_failures=1)
        assert four.show(made)["phase"] == 1
        assert four.hosts[0].step() == "activate"
        assert four.show(made)["targets"]["unreachable"] == 0
        four.settle(*four.hosts[2:])
        assert four.status(made) == "active"

    def test_back_after_it_became_active_it_gets_it(self, four: World, time: Clock) -> None:
        made = self.away(four, time, max_failures=1)
        four.settle(*four.hosts[2:])
        assert four.status(made) == "active"
        assert four.hosts[0].step() == "activate"
        assert four.hosts[0].runs == made
        assert four.status(made) == "active"

    def test_back_after_it_failed_it_stays_where_it_was(self, four: World, time: Clock) -> None:
        first = four.roll_out(four.bundle("a:drop"))
        made = self.away(four, time)
        assert four.status(made) == "failed"
        assert four.hosts[0].step() == "rollback"
        assert four.hosts[0].runs == first
        assert all(untouched(four, made, host) for host in four.hosts[2:])

    def test_back_after_it_was_rolled_back_it_stays_where_it_was(self, four: World, time: Clock) -> None:
        first = four.roll_out(four.bundle("a:drop"))
        made = self.away(four, time, auto_rollback=True)
        assert four.status(made) == "rolling_back"
        assert four.hosts[1].step() == "rollback"
        assert four.status(made) == "rolled_back"
        assert four.hosts[0].step() == "rollback"
        assert four.hosts[0].runs == first
        assert {code for *_, code in four.hosts[0].reported} == {200}

    def test_one_that_fails_when_it_is_back_counts_as_it_did(self, four: World, time: Clock) -> None:
        made = self.away(four, time, max_failures=1)
        four.hosts[0].step(fail=True)
        assert four.status(made) == "deploying"
        four.settle(*four.hosts[2:])
        assert four.status(made) == "active"


class TestCallingOff:
    """In a phase, and in a bake."""

    @pytest.mark.parametrize("verb", ["cancel", "revoke", "rollback"])
    @pytest.mark.parametrize("when", ["phase", "bake"])
    def test_goes_back_where_it_was_and_begins_no_phase(
        self, staging: World, time: Clock, verb: str, when: str
    ) -> None:
        world = staging
        world.enroll(2)
        first = world.roll_out_approved(world.bundle("a:drop"))
        made = world.request(world.bundle("b:drop"), strategy=plan(50, 100))
        world.decide(made)
        world.work()
        one, two, three, other = world.hosts
        one.step()
        if when == "bake":
            two.step()
        assert world.phases(made)[0] == ("baking" if when == "bake" else "deploying")
        answer = world.decide(made, "revoke") if verb == "revoke" else world.act(made, verb)
        assert answer.status_code == 200, answer.content
        shown = world.show(made)
        assert (shown["status"], shown["bake_ends_at"]) == ("rolling_back", None)
        time.on(BAKE * 2)
        assert end_due_bakes(clock.now()) == 0
        world.settle()
        assert world.status(made) == "rolled_back"
        assert world.phases(made) == ["stopped", "untouched"]
        assert {host.runs for host in world.hosts} == {first}
        assert all(untouched(world, made, host) for host in (three, other))
        assert PhaseEvent.objects.filter(deployment_id=made, phase=1).count() == 0

    def test_works_when_every_agent_that_had_a_directive_is_removed(self, four: World, time: Clock) -> None:
        made = four.request(strategy=plan(25, 100, max_failures=1))
        four.work()
        first = four.hosts.pop(0)
        assert four.bob.delete(f"{four.path}/agents/{first.id}?force=true").status_code == 204
        assert four.phases(made) == ["baking", "waiting"]
        assert four.act(made, "cancel").json()["status"] == "rolled_back"
        assert all(untouched(four, made, host) for host in four.hosts)

    def test_the_next_in_line_gets_its_turn(self, four: World, time: Clock) -> None:
        made = four.request(four.bundle("a:drop"), strategy=plan(50, 100))
        four.work()
        waits = four.request(four.bundle("b:drop"), [four.hosts[3]])
        assert four.builds() == []
        four.settle(*four.hosts[:2])
        assert four.act(made, "cancel").status_code == 200
        four.settle()
        assert four.status(made) == "rolled_back"
        assert four.builds() == [waits]


class TestStrategies:
    """What is refused, each problem by itself."""

    @pytest.mark.parametrize(
        ("phases", "pointers"),
        [
            ([(50, 0)], {"/strategy/phases/0/percent": "not_everybody"}),
            ([(50, 0), (50, 0), (100, 0)], {"/strategy/phases/1/percent": "not_growing"}),
            ([(60, 0), (50, 0), (100, 0)], {"/strategy/phases/1/percent": "not_growing"}),
            ([(100, 0), (100, 0)], {"/strategy/phases/1/percent": "not_growing"}),
            (
                [(60, 0), (50, 0), (90, 0)],
                {"/strategy/phases/1/percent": "not_growing", "/strategy/phases/2/percent": "not_everybody"},
            ),
        ],
    )
    def test_percentages_grow_to_a_hundred(
        self, world: World, phases: list[tuple[int, int]], pointers: dict[str, str]
    ) -> None:
        given = {"type": "phased", "phases": [{"percent": p, "bake_seconds": b} for p, b in phases]}
        answer = world.ask(strategy=given)
        assert code(answer) == (422, "invalid_strategy")
        assert {e["pointer"]: e["code"] for e in answer.json()["errors"]} == pointers
        assert not Target.objects.exists()

    def test_what_is_taken_is_shown_to_those_who_decide(self, staging: World) -> None:
        given = plan(10, 100, max_failures=1, auto_rollback=True)
        made = staging.request(strategy=given)
        assert staging.show(made)["strategy"] == given
        approval = staging.approval(made)
        assert approval["strategy"] == given
        other = staging.request(staging.bundle("b:drop"), strategy=plan(50, 100))
        assert staging.approval(other)["shown_digest"] != approval["shown_digest"]


@pytest.mark.postgres
class TestLabels:
    """Who is meant by labels."""

    def test_all_that_are_given_have_to_match(self, four: World) -> None:
        one, two, three, _ = four.hosts
        four.labels(one, zone="a", tier="web")
        four.labels(two, zone="a", tier="db")
        four.labels(three, zone="b", tier="web")
        for labels, expected in (
            ({"zone": "a"}, {one.id, two.id}),
            ({"zone": "a", "tier": "web"}, {one.id}),
            ({"tier": "web"}, {one.id, three.id}),
        ):
            made = four.request(four.bundle(f"f{len(expected)}{len(labels)}:drop"), {"labels": labels})
            assert set(four.targets(made)) == expected
            assert four.show(made)["target_selector"] == {"labels": labels}
            four.act(made, "cancel")
        assert code(four.ask(four.bundle("z:drop"), {"labels": {"zone": "c"}})) == (422, "no_matching_agent")
        assert code(four.ask(four.bundle("z:drop"), {"labels": {"zone": "a", "tier": "x"}})) == (
            422,
            "no_matching_agent",
        )

    def test_come_from_the_token_or_an_operator_never_from_the_host(self, world: World) -> None:
        from tests.support import Caller

        body = {"max_uses": 1, "labels": {"zone": "a"}}
        token = world.bob.post(f"{world.path}/enrollment-tokens", body).json()["token"]
        labelled = (
            Caller(token).post(f"{world.path}/agents", {"labels": {"zone": "b", "tier": "web"}}).json()["agent_id"]
        )
        made = world.request(targets={"labels": {"zone": "a"}})
        assert set(world.targets(made)) == {labelled}
        for claimed in ({"zone": "b"}, {"tier": "web"}):
            assert code(world.ask(world.bundle("z:drop"), {"labels": claimed})) == (422, "no_matching_agent")

    def test_the_set_is_fixed_when_it_is_asked_for(self, staging: World) -> None:
        one, other = staging.hosts
        staging.labels(one, zone="a")
        made = staging.request(targets={"labels": {"zone": "a"}})
        staging.labels(other, zone="a")
        staging.labels(one, zone=None)
        assert staging.decide(made).status_code == 200
        staging.work()
        assert (one.step(), other.step()) == ("activate", "none")

    def test_a_revoked_agent_is_not_meant(self, world: World) -> None:
        one, other = world.hosts
        for host in (one, other):
            world.labels(host, zone="a")
        assert world.bob.post(f"{world.path}/agents/{one.id}/revoke-key", {}).status_code == 200
        made = world.request(targets={"labels": {"zone": "a"}})
        assert set(world.targets(made)) == {other.id}

    def test_phases_go_over_those_that_match(self, four: World) -> None:
        for host in four.hosts[1:3]:
            four.labels(host, zone="a")
        made = four.request(targets={"labels": {"zone": "a"}}, strategy=plan(50, 100))
        shown = four.targets(made)
        assert [shown[host.id]["phase"] for host in four.hosts[1:3]] == [0, 1]


@pytest.mark.postgres
class TestSupersession:
    """Who holds what, when agents go."""

    def test_removing_the_last_agent_that_was_not_taken_over_supersedes(self, world: World) -> None:
        one, other = world.hosts
        first = world.roll_out(world.bundle("a:drop"))
        second = world.roll_out(world.bundle("b:drop"), [one])
        assert world.show(first)["superseded_by"] is None
        assert world.bob.delete(f"{world.path}/agents/{other.id}").status_code == 204
        assert world.show(first)["superseded_by"] == second
        assert world.current() == second
        world.hosts.remove(other)
        # what the second gives back, the first holds again
        assert world.act(second, "rollback").status_code == 200
        assert one.step() == "rollback"
        assert world.show(first)["superseded_by"] is None
        assert world.current() == first

    def test_without_a_newer_deployment_there_is_no_supersession(self, world: World) -> None:
        made = world.roll_out()
        for host in world.hosts:
            assert world.bob.delete(f"{world.path}/agents/{host.id}").status_code == 204
        assert world.show(made)["superseded_by"] is None
        assert world.status(made) == "active"

    def test_by_phases_a_newer_one_takes_over_with_its_last(self, four: World, time: Clock) -> None:
        first = four.roll_out(four.bundle("a:drop"))
        second = four.request(four.bundle("b:drop"), strategy=plan(50, 100))
        four.work()
        four.settle(*four.hosts[:2])
        time.bake(four)
        assert four.show(first)["superseded_by"] is None
        assert four.current() == first
        four.settle(*four.hosts[2:])
        time.bake(four)
        assert four.show(first)["superseded_by"] == second
        assert four.current() == second


def test_events_are_only_ever_moves(world: World) -> None:
    world.request(strategy=plan(50, 100))
    world.work()
    assert not DeploymentEvent.objects.filter(from_status="deploying", to_status="deploying").exists()
