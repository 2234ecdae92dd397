"""Deployments, their approvals and build jobs, agents and the clock, small enough to visit every state.

The moves are those of the models (`legal`), and the rules are the code's own: `desired_of`, `next_step`, `startable`,
`effect_of`, `rollback_outcome`. What stands here is only how the services put them together. The clock is a choice: a window, a
credential, a timeout or a bake may end at any moment, in any order.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from apps.agents.registry import AgentReport, Desired
from apps.approvals.models import Approval
from apps.core.errors import Conflict
from apps.core.fsm import legal_moves
from apps.deployments.desired import Assigned, desired_of
from apps.deployments.models import HOLDS_TARGETS, IN_FLIGHT, Deployment
from apps.deployments.rollout import Phase, Step, Tally, next_step
from apps.deployments.rules import (
    NOTHING,
    ReportEffect,
    RollbackOutcome,
    RollbackTarget,
    TargetState,
    Waiting,
    effect_of,
    rollback_outcome,
    startable,
)
from apps.deployments.services.denial_and_failure import BEFORE_HAND_OUT
from apps.deployments.services.rollback import NEVER_FETCHED, ROLLS_BACK_FROM
from apps.jobs.models import Job

HOLDING = frozenset(str(s) for s in HOLDS_TARGETS)
FLYING = frozenset(str(s) for s in IN_FLIGHT)
LEGAL = {kind: legal_moves(model) for kind, model in (("deployment", Deployment), ("approval", Approval), ("job", Job))}
IDS = tuple(uuid.UUID(int=n + 1) for n in range(4))
ENDED = frozenset({"", "denied", "active", "failed", "rolled_back"})
LIVE_JOB = frozenset({"queued", "running", "retrying"})
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


class Broken(Exception):
    """An invariant does not hold; the text names it."""


@dataclass(frozen=True)
class Setting:
    """What a walk is about: who goes where, how many must agree, and what may happen besides."""

    targets: tuple[tuple[int, ...], ...] = ((0, 1), (1,))
    quorum: int = 0
    reviewers: int = 2
    phases: tuple[Phase, ...] = (Phase(100, 0),)
    max_failures: int = 0
    auto_rollback: bool = False
    attempts: int = 2
    taking_back: bool = True
    removing: bool = False
    failing: bool = True
    silence: bool = True
    expiry: bool = True


class T(NamedTuple):
    """A target: as the row, `asked` and `back` being the order of rollbacks instead of times; `ran`: ever activated."""

    status: str = "pending"
    phase: int = 0
    notified: bool = False
    settled: bool = False
    handed: bool = False
    asked: int = 0
    ran: bool = False


class J(NamedTuple):
    """A build job: `at` is 0 before its handler began, 1 when it holds the work, 2 when the handler is done and the job is
    not ended yet, None while no attempt runs."""

    status: str
    attempts: int = 0
    at: int | None = None


class D(NamedTuple):
    """A deployment with its approval and its job. `votes` are (reviewer, what was shown to them); `base` is frozen when it is
    decided; `turn` is when it was approved among those that wait."""

    status: str = ""
    approval: str = ""
    votes: frozenset[tuple[int, Any]] = frozenset()
    base: Any = None
    run_out: bool = False
    turn: int = 0
    queued: bool = False
    sequence: int = 0
    phase: int | None = None
    bake: str = ""
    back: int = 0
    targets: tuple[tuple[int, T], ...] = ()
    job: J | None = None

    def target(self, agent: int) -> T | None:
        return next((t for a, t in self.targets if a == agent), None)


class World(NamedTuple):
    """A state. `confirmed` is what each agent last confirmed (None: nothing), `removed` which agents were removed."""

    d: tuple[D, ...]
    confirmed: tuple[int | None, ...]
    removed: tuple[bool, ...]


Report = tuple[str, str | None, int | None]
"""A report: status, bundle, sequence."""

Event = tuple[str, bool, World]
"""(what happened, would it happen by itself, the state after it)"""


@cache
def _wanted(walk: tuple[tuple[int, int, str, str, int, int], ...]) -> Desired:
    return desired_of(
        Assigned(IDS[d], sequence, f"{d}", status, target, _time(back), _time(asked))
        for d, sequence, status, target, back, asked in walk
    )


def _time(order: int) -> dt.datetime | None:
    return START + dt.timedelta(seconds=order) if order else None


@cache
def _meaning(report: Report, target: TargetState, wanted: Desired) -> ReportEffect | None:
    try:
        return effect_of(AgentReport(*report), target, wanted)
    except Conflict:
        return None


@cache
def _next_step(setting: Setting, phase: int | None, bake: str, tallies: tuple[tuple[int, str, bool], ...]) -> Step:
    ends = {"": None, "on": START + dt.timedelta(seconds=60), "over": START}[bake]
    rows = [Tally(*row) for row in tallies]
    return next_step(setting.phases, phase, ends, rows, max_failures=setting.max_failures, now=START)


@cache
def _alike(votes: frozenset[tuple[int, Any]]) -> frozenset[tuple[int, Any]]:
    """The same votes by reviewers numbered in the order of what they voted on."""
    mine: dict[int, list[str]] = {}
    for who, what in votes:
        mine.setdefault(who, []).append(repr(what))
    number = {who: n for n, who in enumerate(sorted(mine, key=lambda who: (sorted(mine[who]), who)))}
    return frozenset((number[who], what) for who, what in votes)


class Machine:
    """One step at a time from a `World`: what the services do in one transaction, then what must hold."""

    def __init__(self, setting: Setting, world: World) -> None:
        self.setting = setting
        self.d = list(world.d)
        self.confirmed = list(world.confirmed)
        self.removed = list(world.removed)

    # --- writing ---------------------------------------------------------------------------------------------------

    def world(self) -> World:
        """The state now. Orders of rollbacks and approvals are counted anew, and reviewers, who are alike, named anew, so that
        states which differ in nothing that matters are one."""
        times = {0} | {d.back for d in self.d} | {t.asked for d in self.d for _, t in d.targets}
        rank = {time: n for n, time in enumerate(sorted(times))}
        turns = sorted(d.turn for d in self.d if d.status == "approved")
        return World(tuple(self._plain(d, rank, turns) for d in self.d), tuple(self.confirmed), tuple(self.removed))

    def _plain(self, d: D, rank: dict[int, int], turns: list[int]) -> D:
        turn = turns.index(d.turn) + 1 if d.status == "approved" else 0
        votes = _alike(d.votes)
        moved = any(rank[t.asked] != t.asked for _, t in d.targets)
        if (rank[d.back], turn, votes, moved) == (d.back, d.turn, d.votes, False):
            return d
        targets = tuple((a, t._replace(asked=rank[t.asked])) for a, t in d.targets) if moved else d.targets
        return d._replace(back=rank[d.back], turn=turn, votes=votes, targets=targets)

    def set(self, i: int, **columns: Any) -> None:
        self.d[i] = self.d[i]._replace(**columns)

    def target(self, i: int, agent: int, **columns: Any) -> None:
        self.set(i, targets=tuple((a, t._replace(**columns) if a == agent else t) for a, t in self.d[i].targets))

    def move(self, i: int, to: str, **columns: Any) -> None:
        """A move of deployment `i`, if it is one."""
        d = self.d[i]
        if to not in LEGAL["deployment"][d.status]:
            raise Broken(f"deployment {d.status} -> {to} is no move")
        self.set(i, status=to, **columns)

    def approval(self, i: int, to: str) -> None:
        d = self.d[i]
        if to not in LEGAL["approval"][d.approval]:
            raise Broken(f"approval {d.approval} -> {to} is no move")
        self.set(i, approval=to)

    def job(self, i: int, *path: str, **columns: Any) -> None:
        job = self.d[i].job
        assert job is not None
        for to in path:
            if to != job.status and to not in LEGAL["job"][job.status]:
                raise Broken(f"job {job.status} -> {to} is no move")
            job = job._replace(status=to)
        self.set(i, job=job._replace(**columns))

    # --- reading ---------------------------------------------------------------------------------------------------

    def assignment_history(self, agent: int) -> tuple[tuple[int, int, str, str, int, int], ...]:
        rows = []
        for i, d in enumerate(self.d):
            t = d.target(agent)
            if t is not None and t.notified:
                rows.append((i, d.sequence, d.status, t.status, d.back, t.asked))
        return tuple(sorted(rows, key=lambda row: -row[1]))

    def wanted(self, agent: int) -> Desired:
        return _wanted(self.assignment_history(agent))

    def busy_agents(self, exclude: int | None = None) -> set[int]:
        return {a for i, d in enumerate(self.d) if i != exclude and d.status in HOLDING for a, _ in d.targets}

    def base(self, i: int) -> tuple[tuple[int, int | None], ...]:
        """As `selectors.base_of`: what is building or deploying there, else what the agent last confirmed."""
        found = {a: self.confirmed[a] for a, _ in self.d[i].targets}
        for j, d in enumerate(self.d):
            if j != i and d.status in ("building", "deploying"):
                found.update({a: j for a, _ in d.targets if a in found})
        return tuple(found.items())

    # --- what the services do --------------------------------------------------------------------------------------

    def reconcile_after_transition(self) -> None:
        order = sorted((d.turn, i) for i, d in enumerate(self.d) if d.status == "approved")
        rows = [Waiting(IDS[i], [IDS[a] for a, _ in self.d[i].targets], self.d[i].queued) for _, i in order]
        for pk in startable(rows, {IDS[a] for a in self.busy_agents()}):
            i = IDS.index(pk)
            job = self.d[i].job
            if job is not None and job.status in LIVE_JOB:
                raise Broken("two builds of one deployment are on their way")
            self.set(i, queued=True, job=J("queued"))

    def granted(self, i: int) -> None:
        self.approval(i, "approved")
        self.move(i, "approved", turn=max(d.turn for d in self.d) + 1)
        self.reconcile_after_transition()

    def may_build(self, i: int) -> bool:
        """`build._refusal`: the credential is good, and nothing moved underneath since the decision."""
        d = self.d[i]
        return d.approval == "approved" and not d.run_out and (d.status != "approved" or d.base == self.base(i))

    def fail_build(self, i: int) -> None:
        if self.d[i].status == "approved":
            self.move(i, "building", queued=False)
        self.move(i, "failed")
        self.reconcile_after_transition()

    def start_build(self, i: int) -> None:
        """What the handler does first; where it has to wait its job ends in the same transaction."""
        d = self.d[i]
        if d.status not in ("approved", "building"):
            self.job(i, at=2)
        elif d.status == "approved" and {a for a, _ in d.targets} & self.busy_agents(exclude=i):
            self.set(i, queued=False)
            self.job(i, "completed", at=None)
        elif not self.may_build(i):
            self.job(i, at=2)
            self.fail_build(i)
        else:
            self.job(i, at=1)
            self.begin_build(i)

    def begin_build(self, i: int) -> None:
        d = self.d[i]
        if d.status == "approved":
            self.require_grant(i)
            self.move(i, "building", queued=False, sequence=max(x.sequence for x in self.d) + 1)

    def require_grant(self, i: int) -> None:
        """What must hold whenever a build begins: a live approval, by as many people as the policy wants, for this base."""
        d = self.d[i]
        agreed = {reviewer for reviewer, shown in d.votes if shown == d.base}
        if d.approval != "approved" or d.run_out:
            raise Broken(f"a build begins while the approval is {d.approval}, its credential run out: {d.run_out}")
        if len(agreed) < self.setting.quorum:
            raise Broken(f"a build begins with {len(agreed)} of {self.setting.quorum} votes on what is built")
        if d.base != self.base(i):
            raise Broken("a build begins on another base than was decided on")

    def finish_build(self, i: int) -> None:
        if self.d[i].status != "building":
            self.job(i, at=2)
            return
        if self.d[i].approval != "approved":
            raise Broken(f"a build ends while the approval is {self.d[i].approval}")
        step = self.advance_phases(i)
        self.move(i, "deploying")
        self.apply_progress(i, step)
        self.job(i, "completed", at=None)
        self.reconcile_after_transition()

    def advance_phases(self, i: int) -> Step:
        while True:
            d = self.d[i]
            tallies = tuple(sorted((t.phase, t.status, t.settled) for _, t in d.targets))
            step = _next_step(self.setting, d.phase, d.bake, tallies)
            if step is Step.BAKE:
                self.set(i, bake="on")
            elif step is Step.ADVANCE:
                phase = 0 if d.phase is None else d.phase + 1
                for agent, t in d.targets:
                    if t.phase == phase and t.status == "pending":
                        self.target(i, agent, status="assigned", notified=True)
                self.set(i, phase=phase, bake="")
            else:
                return step

    def apply_progress(self, i: int, step: Step) -> None:
        if step is Step.ACTIVATE:
            self.move(i, "active")
        elif step is Step.FAIL:
            for agent, t in self.d[i].targets:
                if t.notified and not t.settled:
                    self.target(i, agent, settled=True)
            self.move(i, "failed")
            if self.setting.auto_rollback and any(t.notified and not self.removed[a] for a, t in self.d[i].targets):
                self.begin_rollback(i)

    def apply_target_progress(self, i: int) -> None:
        d = self.d[i]
        if d.status == "deploying":
            self.apply_progress(i, self.advance_phases(i))
        elif d.status == "rolling_back":
            asked = [RollbackTarget(t.status, t.settled, self.removed[a]) for a, t in d.targets if t.asked == d.back]
            step = rollback_outcome(asked)
            if step is not RollbackOutcome.WAIT:
                self.move(i, "failed" if step is RollbackOutcome.FAIL else "rolled_back")
        self.reconcile_after_transition()

    def begin_rollback(self, i: int) -> bool:
        """Whether it may; see `services.rollback.begin_rollback`."""
        d = self.d[i]
        if d.status not in ROLLS_BACK_FROM or d.phase is None:
            return False
        notified = [a for a, t in d.targets if t.notified and not self.removed[a]]
        under_way = d.status == "deploying"
        if (not notified and not under_way) or self.busy_agents(exclude=i) & set(notified):
            return False
        covered = [a for a in notified if not self._newer_counts(i, a)]
        if not covered and not under_way:
            return False
        back = max([x.back for x in self.d] + [t.asked for x in self.d for _, t in x.targets]) + 1
        for agent, t in d.targets:
            if t.notified and not t.settled and agent not in covered:
                self.target(i, agent, settled=True)
        for agent in covered:
            t = d.target(agent)
            assert t is not None
            if t.status == "rolled_back":
                self.target(i, agent, asked=back, settled=True)
            elif not t.handed and t.status in NEVER_FETCHED:
                self.target(i, agent, status="rolled_back", asked=back, settled=True)
            else:
                self.target(i, agent, asked=back, settled=False)
        self.move(i, "rolling_back", back=back)
        self.apply_target_progress(i)
        return True

    def _newer_counts(self, i: int, agent: int) -> bool:
        mine = self.d[i].sequence
        return any(
            sequence > mine and not Assigned(IDS[j], sequence, "", status, target, _time(back), _time(asked)).ruled_out
            for j, sequence, status, target, back, asked in self.assignment_history(agent)
        )

    def cancel_or_roll_back(self, i: int) -> bool:
        """Cancelled or revoked; whether it may."""
        d = self.d[i]
        if d.status in BEFORE_HAND_OUT:
            self.move(i, "denied", queued=False)
        elif d.status != "deploying" or not self.begin_rollback(i):
            return False
        self.approval(i, "revoked")
        self.reconcile_after_transition()
        return True

    def meaning(self, i: int, agent: int, report: Report, wanted: Desired) -> ReportEffect | None:
        """What a report means; None if it is refused."""
        d = self.d[i]
        t = d.target(agent)
        assert t is not None
        return _meaning(report, TargetState(IDS[i], t.status, t.settled, bool(t.asked), bool(d.bake)), wanted)

    def take(self, i: int, agent: int, meaning: ReportEffect, wanted: Desired) -> None:
        """Take a report, as `services.record_report` does."""
        t = self.d[i].target(agent)
        assert t is not None
        if meaning.confirms:
            self.confirmed[agent] = IDS.index(wanted.deployment_id) if wanted.deployment_id else None
        if meaning.to is not None:
            ran = t.ran or meaning.to == "activated"
            self.target(i, agent, status=meaning.to, settled=t.settled or meaning.settles, ran=ran, handed=True)
        if meaning.settles:
            self.apply_target_progress(i)


def first(setting: Setting) -> World:
    """Nothing was asked for yet."""
    agents = {a for targets in setting.targets for a in targets}
    return World(tuple(D() for _ in setting.targets), (None,) * len(agents), (False,) * len(agents))


def events(setting: Setting, world: World) -> Iterator[Event]:
    """Everything that can happen in `world`."""

    def when(name: str, fair: bool, do: Callable[[Machine], Any]) -> Iterator[Event]:
        machine = Machine(setting, world)
        if do(machine) is not False:
            after = machine.world()
            if after != world:
                yield name, fair, after

    for i, d in enumerate(world.d):
        if d.status == "":
            if i == 0 or world.d[i - 1].status:
                yield from when(f"request {i}", False, lambda m, i=i: _request(m, i))
            continue
        yield from _of_people(setting, i, d, when)
        yield from _of_clock(setting, i, d, when)
        yield from _of_worker(setting, i, d, when)
        if d.phase is not None:
            yield from _of_agents(setting, world, i, d, when)
    if setting.removing:
        for agent, removed in enumerate(world.removed):
            if not removed:
                yield from when(f"remove agent {agent}", False, lambda m, a=agent: _remove(m, a))


When = Callable[[str, bool, Callable[[Machine], Any]], Iterator[Event]]


def _request(m: Machine, i: int) -> bool:
    here = [a for a in m.setting.targets[i] if not m.removed[a]]
    if not here:
        return False
    bounds = [-(-len(here) * p.percent // 100) for p in m.setting.phases]
    targets = tuple((a, T(phase=next(n for n, b in enumerate(bounds) if at < b))) for at, a in enumerate(here))
    m.set(i, status="pending_approval", approval="pending", targets=targets)
    if m.setting.quorum == 0:
        m.set(i, base=m.base(i))
        m.granted(i)
    return True


def _vote(m: Machine, i: int, reviewer: int, approve: bool) -> bool:
    shown = m.base(i)
    if (reviewer, shown) in m.d[i].votes:
        return False
    m.set(i, votes=m.d[i].votes | ({(reviewer, shown)} if approve else set()))
    agreed = {who for who, what in m.d[i].votes if what == shown}
    if not approve:
        m.set(i, base=shown)
        m.approval(i, "denied")
        m.move(i, "denied")
        m.reconcile_after_transition()
    elif len(agreed) >= m.setting.quorum:
        m.set(i, base=shown)
        m.granted(i)
    return True


def _of_people(setting: Setting, i: int, d: D, when: When) -> Iterator[Event]:
    if d.status == "pending_approval":
        for reviewer in range(setting.reviewers):
            yield from when(f"{reviewer} approves {i}", False, lambda m, who=reviewer: _vote(m, i, who, True))
        yield from when(f"deny {i}", False, lambda m: _vote(m, i, 0, False))
    if setting.taking_back and d.approval in ("pending", "approved"):
        yield from when(f"call off {i}", False, lambda m: m.cancel_or_roll_back(i))
    if setting.taking_back and d.status in ROLLS_BACK_FROM:
        yield from when(f"roll back {i}", False, lambda m: (m.begin_rollback(i), m.reconcile_after_transition())[0])


def _expire(m: Machine, i: int) -> None:
    m.approval(i, "expired")
    m.move(i, "denied")
    m.reconcile_after_transition()


def _silent(m: Machine, i: int, agent: int) -> None:
    m.target(i, agent, status="unreachable", settled=True)
    m.apply_target_progress(i)


def _end_bake(m: Machine, i: int) -> None:
    m.set(i, bake="over")
    m.apply_target_progress(i)


def _unwell(m: Machine, i: int, agent: int) -> None:
    m.target(i, agent, status="failed", settled=True)
    m.apply_target_progress(i)


def _of_clock(setting: Setting, i: int, d: D, when: When) -> Iterator[Event]:
    if d.status == "pending_approval":
        yield from when(f"window of {i} passes", True, lambda m: _expire(m, i))
    if setting.expiry and d.status in ("approved", "building"):
        if not d.run_out:
            yield from when(f"credential of {i} runs out", True, lambda m: m.set(i, run_out=True))
        else:
            yield from when(f"sweep finds {i} expired", True, lambda m: m.fail_build(i))
    if d.bake == "on" and d.status == "deploying":
        yield from when(f"bake of {i} ends", True, lambda m: _end_bake(m, i))
    for agent, t in d.targets:
        waited_for = d.status == "deploying" or (d.status == "rolling_back" and t.asked == d.back)
        if setting.silence and t.notified and not t.settled and waited_for:
            yield from when(f"{agent} is silent on {i}", True, lambda m, a=agent: _silent(m, i, a))
        if d.bake and d.status == "deploying" and t.status == "activated":
            yield from when(f"{agent} is unwell under {i}", False, lambda m, a=agent: _unwell(m, i, a))


def _begin(m: Machine, i: int) -> None:
    job = m.d[i].job
    assert job is not None
    m.job(i, "running" if job.status == "queued" else "retrying", attempts=job.attempts + 1, at=0)


def _lose(m: Machine, i: int) -> None:
    """The worker is killed, or hangs: its lease runs out. What it does later is fenced by its lease, and has no effect."""
    job = m.d[i].job
    assert job is not None
    if job.status == "running":
        m.job(i, "failed", "retrying")
    m.job(i, "retrying", at=None)
    if job.attempts >= m.setting.attempts:
        m.job(i, "dead_letter")
        if m.d[i].status in ("approved", "building"):
            m.fail_build(i)


def _of_worker(setting: Setting, i: int, d: D, when: When) -> Iterator[Event]:
    job = d.job
    if job is None or job.status not in LIVE_JOB:
        return
    if job.at is None:
        yield from when(f"a worker takes {i}", True, lambda m: _begin(m, i))
        return
    step = (Machine.start_build, Machine.finish_build, lambda m, i: m.job(i, "completed", at=None))[job.at]
    yield from when(f"build of {i}: {('begins', 'ends', 'is put away')[job.at]}", True, lambda m: step(m, i) or True)
    yield from when(f"the worker of {i} is killed", False, lambda m: _lose(m, i))


REPORTED_STATUSES = ("fetched", "activated", "failed", "rolled_back", "stopped")


def _of_agents(setting: Setting, world: World, i: int, d: D, when: When) -> Iterator[Event]:
    """Every report an agent may send about `i`: on its directive, on an earlier one, or nonsense."""
    now = Machine(setting, world)
    named = [(None, None)] + [(f"{j}", x.sequence) for j, x in enumerate(world.d) if x.sequence]
    for agent, t in d.targets:
        if not t.notified or world.removed[agent]:
            continue
        wanted = now.wanted(agent)
        if not t.handed:
            yield from when(f"{agent} fetches {i}", True, lambda m, a=agent: m.target(i, a, handed=True))
        for status in REPORTED_STATUSES:
            if status == "failed" and not setting.failing:
                continue
            honest = status in ("activated", "rolled_back", "stopped") and wanted.for_deployment_id == IDS[i]
            for bundle, sequence in named:
                meaning = now.meaning(i, agent, (status, bundle, sequence), wanted)
                if meaning is not None and meaning != NOTHING:
                    yield from when(
                        f"{agent} says {status} {bundle} on {i}",
                        honest,
                        lambda m, a=agent, x=meaning, w=wanted: m.take(i, a, x, w),
                    )


def _remove(m: Machine, agent: int) -> None:
    m.removed[agent] = True
    for i, d in enumerate(m.d):
        t = d.target(agent)
        if t is not None and not t.settled and d.status in FLYING:
            m.target(i, agent, status="failed", settled=True)
            m.apply_target_progress(i)
    m.reconcile_after_transition()


def check(setting: Setting, world: World) -> None:
    """What must hold in every state. Raises Broken."""
    machine = Machine(setting, world)
    held: set[int] = set()
    for i, d in enumerate(world.d):
        if d.status in HOLDING:
            mine = {a for a, _ in d.targets}
            if mine & held:
                raise Broken("two deployments change one target")
            held |= mine
        if (d.approval == "pending") != (d.status == "pending_approval"):
            raise Broken(f"the approval is {d.approval} and the deployment {d.status}")
        if d.approval in ("denied", "expired") and d.status != "denied":
            raise Broken(f"the approval is {d.approval} and the deployment {d.status}")
        if d.status == "denied" and d.approval == "approved":
            raise Broken("denied, and its approval stands")
        live = d.job is not None and d.job.status in LIVE_JOB
        if (d.status == "building" or (d.status == "approved" and d.queued)) and not live:
            raise Broken(f"it is {d.status} and nobody builds it")
        if d.status in ("active", "rolled_back") and any(t.notified and not t.settled for a, t in d.targets):
            raise Broken(f"{d.status}, and a target is still waited for")
        if d.status in ("denied", "approved", "pending_approval") and any(t.notified for _, t in d.targets):
            raise Broken(f"{d.status}, and an agent was told of it")
        if i and d.sequence and any(d.sequence == x.sequence for x in world.d[:i]):
            raise Broken("two deployments have one sequence")
    machine.reconcile_after_transition()
    if machine.world() != world:
        raise Broken("an approved deployment could be built, and no build is queued")
    for agent in range(len(world.removed)):
        wanted = machine.wanted(agent)
        if wanted.deployment_id is None:
            continue
        d = world.d[IDS.index(wanted.deployment_id)]
        t = d.target(agent)
        if d.status not in ("deploying", "active", "failed") or d.back or t is None or not t.notified:
            raise Broken(f"an agent is told to run what is {d.status}")
        if wanted.directive == "rollback" and not t.ran:
            raise Broken("an agent is sent back to what it never ran")
        if len({who for who, what in d.votes if what == d.base}) < setting.quorum:
            raise Broken("an agent is told to run what too few agreed to")


FINAL = {"denied", "rolled_back"}
FINAL_APPROVAL = {"denied", "expired", "revoked"}


def check_step(before: World, after: World) -> None:
    """What must hold of every step: what is final stays. Raises Broken."""
    for was, now in zip(before.d, after.d, strict=True):
        if was.status in FINAL and now.status != was.status:
            raise Broken(f"{was.status} became {now.status}")
        if was.approval in FINAL_APPROVAL and now.approval != was.approval:
            raise Broken(f"an approval that was {was.approval} became {now.approval}")
        if was.sequence and was.sequence != now.sequence:
            raise Broken("a sequence changed")


def ended(world: World) -> bool:
    """Nothing is under way any more."""
    return all(d.status in ENDED and (d.job is None or d.job.status not in LIVE_JOB) for d in world.d)
