"""Every state that two deployments, their approvals and builds, two agents and the clock can come into.

Each walk visits all of its states: from 805 (two phases with a bake) to 47,697 (two deployments, quorum two), 153,115
together, in about thirty seconds of one core. A rule that changes may change the numbers. `BYTEOR_MODEL_LIMIT=1000000` walks
the larger settings, too, as far as that.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from apps.deployments import desired, rules
from apps.deployments.rollout import Phase
from tests.model.explore import model
from tests.model.explore.model import Broken, Setting
from tests.model.explore.walk import explore

ORDINARY = 60_000
LIMIT = int(os.environ.get("BYTEOR_MODEL_LIMIT", ORDINARY))
TWO_PHASES = (Phase(50, 60), Phase(100, 60))

SETTINGS = {
    # two people must agree, the base moves under them, windows and credentials run out, workers are killed
    "two deployments on one agent, quorum two": Setting(targets=((0,), (0,)), quorum=2, failing=False, silence=False),
    "builds that are lost and tried again": Setting(
        targets=((0,), (0,)), quorum=1, reviewers=1, failing=False, silence=False
    ),
    # reports in any order, silence, rollback and cancel; they share one of two agents
    "two deployments share an agent": Setting(targets=((0, 1), (1,)), attempts=1, expiry=False),
    "agents that are removed": Setting(targets=((0, 1),), attempts=1, expiry=False, removing=True, max_failures=1),
    "one agent, and everything that can go wrong": Setting(targets=((0,), (0,)), attempts=1, removing=True),
    "two phases with a bake that go back by themselves": Setting(
        targets=((0, 1),), phases=TWO_PHASES, expiry=False, auto_rollback=True
    ),
    "two phases, tolerating one failure": Setting(targets=((0, 1),), phases=TWO_PHASES, attempts=1, max_failures=1),
    "two phases, and another deployment on the first agent": Setting(
        targets=((0, 1), (0,)), phases=(Phase(50, 60), Phase(100, 0)), attempts=1, expiry=False, silence=False
    ),
}
LARGER = {
    "two deployments on both agents, and everything that can go wrong": Setting(
        targets=((0, 1), (0, 1)), quorum=1, reviewers=1, removing=True, max_failures=1
    ),
    "two phased deployments on both agents": Setting(targets=((0, 1), (0, 1)), phases=TWO_PHASES, auto_rollback=True),
}
"""Not walked to their end; only when asked for more than the ordinary limit."""


@pytest.mark.parametrize("name", list(SETTINGS))
def test_the_invariants_hold_in_every_state_and_every_state_has_an_end(name: str) -> None:
    walked = explore(SETTINGS[name], limit=LIMIT)
    assert walked.complete, f"only {walked.states} states and {walked.steps} steps visited, of at most {LIMIT}"


@pytest.mark.skipif(LIMIT <= ORDINARY, reason="asked for by BYTEOR_MODEL_LIMIT")
@pytest.mark.parametrize("name", list(LARGER))
def test_the_invariants_hold_in_the_first_states_of_the_larger_settings(name: str) -> None:
    walked = explore(LARGER[name], limit=LIMIT)
    assert walked.complete or walked.states >= LIMIT


def any_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.Machine, "may_build", lambda machine, i: True)


def builds_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "startable", lambda waiting, held: [w.id for w in waiting if not w.queued])
    monkeypatch.setattr(model.Machine, "busy_agents", lambda machine, exclude=None: set())


def waiting_builds_are_never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "startable", lambda waiting, held: [])


def votes_on_what_was_shown_before_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def vote(machine: model.Machine, i: int, reviewer: int, approve: bool) -> bool:
        shown = machine.base(i)
        if not approve or (reviewer, shown) in machine.d[i].votes:
            return False
        machine.set(i, votes=machine.d[i].votes | {(reviewer, shown)})
        if len({who for who, _ in machine.d[i].votes}) >= machine.setting.quorum:
            machine.set(i, base=shown)
            machine.granted(i)
        return True

    monkeypatch.setattr(model, "_vote", vote)


def rollbacks_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "rollback_outcome", lambda targets: rules.RollbackOutcome.CONFIRM)


def rollbacks_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "rollback_outcome", lambda targets: rules.RollbackOutcome.WAIT)


def what_was_taken_back_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(walk: Any) -> Any:
        return desired.desired_of(
            desired.Assigned(model.IDS[d], sequence, f"{d}", status, target) for d, sequence, status, target, *_ in walk
        )

    monkeypatch.setattr(model, "_wanted", forgetful)


def a_failed_deployment_can_not_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    less = {**model.LEGAL["deployment"], "failed": frozenset()}
    monkeypatch.setitem(model.LEGAL, "deployment", less)


def a_denial_can_be_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {**model.LEGAL["deployment"], "denied": frozenset({"approved"})}
    monkeypatch.setitem(model.LEGAL, "deployment", more)
    original = model._of_clock

    def undo(machine: model.Machine, i: int) -> None:
        machine.move(i, "approved")

    def clock(setting: Setting, i: int, d: model.D, when: model.When) -> Any:
        yield from original(setting, i, d, when)
        if d.status == "denied":
            yield from when("undo", False, lambda m: undo(m, i))

    monkeypatch.setattr(model, "_of_clock", clock)


BROKEN_RULES = {
    any_build: ("two deployments on one agent, quorum two", "a build begins"),
    builds_do_not_wait: ("two deployments share an agent", "two deployments change one target"),
    waiting_builds_are_never_started: ("agents that are removed", "nothing leads on by itself"),
    votes_on_what_was_shown_before_still_count: ("two deployments on one agent, quorum two", "with 1 of 2 votes"),
    rollbacks_do_not_wait: ("agents that are removed", "still waited for"),
    rollbacks_wait_for_ever: ("agents that are removed", "nothing leads on by itself"),
    what_was_taken_back_still_counts: ("agents that are removed", "told to run what is roll"),
    a_failed_deployment_can_not_go_back: ("two phases with a bake that go back by themselves", "is no move"),
    a_denial_can_be_undone: ("agents that are removed", "denied became approved"),
}


@pytest.mark.parametrize("rule", list(BROKEN_RULES), ids=lambda rule: rule.__name__)
def test_a_rule_that_is_broken_is_found(monkeypatch: pytest.MonkeyPatch, rule: Any) -> None:
    name, message = BROKEN_RULES[rule]
    rule(monkeypatch)
    with pytest.raises(Broken, match=message) as broken:
        explore(SETTINGS[name], limit=200_000)
    assert "after:" in str(broken.value), "the way there is told"
