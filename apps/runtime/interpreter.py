"""Runs a plan over records, deterministically: the same plan, settings and records give the same bytes.

In a ring a record lives in one slot. It passes every stage, in the plan's order; a stage sees the slot as its dependencies
left it, which is also as every stage before it in the order left it. So nothing that one stage removed can come back by
another branch. A stage that refuses a record ends its way: no later stage sees it and nothing is emitted. A ring with a shard
key sends each record through the shard that its key hashes to and refuses those without the key; what comes out comes out
in the order in which it came in, over all shards. How a graph runs is in `network`.

What `http_post` and `exec` do goes out through the port `Effects`. A record is forwarded once its effect has returned; an
effect that fails (EffectFailed) ends the processing of the record, which then counts as never seen and may be run again: its
earlier effects then happen again, so effects are at least once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from apps.runtime.network import Network
from apps.runtime.ops import Effects, Op, Refused, Slot, Step, bucket_of, build_step
from apps.runtime.outcome import Emission, Metrics, Outcome, Refusal, Tally
from apps.runtime.spec.plan import EGRESS, FROM_INGRESS, GRAPH_VERSION, Plan

__all__ = ["Emission", "Interpreter", "Metrics", "Outcome", "Refusal", "SettingsError", "StageProblem"]


@dataclass(frozen=True, slots=True)
class StageProblem:
    """What is wrong with the settings of stage `stage`; `pointer` is relative to all stages' settings."""

    stage: str
    pointer: str
    code: str
    message: str


class SettingsError(ValueError):
    """The stage settings do not fit the plan. `problems` holds every one of them."""

    def __init__(self, problems: tuple[StageProblem, ...]) -> None:
        super().__init__("; ".join(f"{item.stage}: {item.message}" for item in problems))
        self.problems = problems


class Interpreter:
    """A plan with its settings, ready to run. Not for use by two threads at once.

    Raises SettingsError when `stage_settings` (stage id → `{rules?, schema?}`) do not fit the plan, or (code
    `effects_missing`) when the plan acts on the outside world and `effects` is None.
    """

    def __init__(
        self, plan: Plan, stage_settings: Mapping[str, Mapping[str, object]], effects: Effects | None = None
    ) -> None:
        self.plan = plan
        steps = _steps(plan, stage_settings, effects)
        self._engine = Network(plan, steps) if plan.plan_v == GRAPH_VERSION else _Ring(plan, steps)
        self._only = plan.ingress[0] if len(plan.ingress) == 1 else None

    def process(self, record: bytes, lane: str | None = None) -> Outcome:
        """Send one record (its bytes, without a line end) in by the ingress `lane`, which may be left out where there is one.

        Raises EffectFailed, and counts nothing, when an effect failed: the record may be processed again. Raises ValueError
        for a lane that is no ingress of the plan.
        """
        if lane is None:
            lane = self._only
        if lane is None or lane not in self.plan.ingress:
            raise ValueError("records come in by one of " + ", ".join(self.plan.ingress))
        return self._engine.process(record, lane)

    def run(self, records: Iterable[bytes]) -> Iterator[Outcome]:
        """`process` each of `records`, in order, as they are asked for."""
        return map(self.process, records)

    def metrics(self) -> Metrics:
        """Counters since it was made, stages in the plan's order.

        `stages`: stage or role → `{received, forwarded, refused, codes}`; `lane:ingress` is there where a ring refuses records
        without their key. `lanes`: a lane that may drop → `{received, dropped}`. `rules`: stage → for each rule the number of
        values that it was applied to.
        """
        return self._engine.metrics()


def _steps(plan: Plan, settings: Mapping[str, Mapping[str, object]], effects: Effects | None) -> dict[str, Step]:
    """What each stage does, in the plan's order. Raises SettingsError with everything that is wrong."""
    known = {stage.id for stage in plan.stages}
    problems = [
        StageProblem(str(name), f"/{name}", "unknown_stage", "The plan has no such stage.")
        for name in settings
        if name not in known
    ]
    steps: dict[str, Step] = {}
    for stage in plan.stages:
        step, wrong = build_step(Op(stage.op, stage.argument), settings.get(stage.id, {}), effects)
        problems += [StageProblem(stage.id, f"/{stage.id}{item.pointer}", item.code, item.message) for item in wrong]
        if step is not None:
            steps[stage.id] = step
    if problems:
        raise SettingsError(tuple(problems))
    return steps


class _Ring:
    def __init__(self, plan: Plan, steps: Mapping[str, Step]) -> None:
        self._runs = tuple(step.run for step in steps.values())
        self._ids = tuple(steps)
        self._rules = {name: step.rules for name, step in steps.items() if step.rules is not None}
        self._undo = bool(self._rules) and any(stage.capability for stage in plan.stages)
        self._emitted = 0
        self._stopped = tuple(Tally() for _ in steps)  # records refused, by stage
        settings = dict(plan.settings)
        key = settings.get("shard_key")
        self._key = tuple(key.split(".")) if isinstance(key, str) else None
        shards = settings.get("shards")
        self._shards = shards if isinstance(shards, int) else 1
        self._keyless = Tally()

    def process(self, record: bytes, lane: str) -> Outcome:
        before = [(rules, rules.hits[:]) for rules in self._rules.values()] if self._undo else ()
        slot = Slot(record)
        shard = 0
        if self._key is not None:
            try:
                shard = bucket_of(slot.value(), self._key, self._shards)
            except Refused as refused:
                self._keyless.refuse(refused.code)
                return Outcome((), (Refusal(FROM_INGRESS, refused.code, refused.message),), ())
        number = 0
        try:
            for run in self._runs:
                run(slot)
                number += 1
        except Refused as refused:
            self._stopped[number].refuse(refused.code)
            refusal = Refusal(self._ids[number], refused.code, refused.message)
            return Outcome((), (refusal,), self._ids[:number], (), shard)
        except BaseException:
            for rules, hits in before:
                rules.hits[:] = hits
            raise
        self._emitted += 1
        return Outcome((Emission(EGRESS, slot.data()),), (), self._ids, (), shard)

    def metrics(self) -> Metrics:
        stages = {}
        left = self._emitted + sum(stopped.refused for stopped in self._stopped)
        if self._key is not None:
            stages[FROM_INGRESS] = Tally(left, self._keyless.refused, self._keyless.codes).as_dict()
        for stage_id, stopped in zip(self._ids, self._stopped, strict=True):
            left -= stopped.refused
            stages[stage_id] = Tally(left, stopped.refused, stopped.codes).as_dict()
        return {"stages": stages, "lanes": {}, "rules": {name: rules.hits[:] for name, rules in self._rules.items()}}
