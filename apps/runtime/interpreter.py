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
from apps.runtime.ops import KINDS, Effects, Op, Refused, SettingProblem, Slot, Step, bucket_of, build_step
from apps.runtime.outcome import Emission, Outcome, Refusal, Tally
from apps.runtime.spec.plan import EGRESS, FROM_INGRESS, GRAPH_VERSION, Plan

__all__ = ["Emission", "Interpreter", "Outcome", "Refusal", "SettingsError", "StageProblem"]


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

    def stats(self) -> dict[str, dict[str, int]]:
        """Stage or role → `{received, forwarded, refused}`, in the plan's order: `received` is `forwarded` plus `refused`.

        `lane:ingress` is there where a ring refuses records without their key, `lane:<name>` for a lane that may drop.
        """
        return self._engine.stats()


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
        step: Step | None = None
        wrong: tuple[SettingProblem, ...]
        if stage.op in KINDS:
            step, wrong = build_step(Op(stage.op, stage.argument), settings.get(stage.id, {}), effects)
        else:
            wrong = (SettingProblem("", "unknown_op", f"There is no op {stage.op[:40]}."),)
        problems += [StageProblem(stage.id, f"/{stage.id}{item.pointer}", item.code, item.message) for item in wrong]
        if step is not None:
            steps[stage.id] = step
    if problems:
        raise SettingsError(tuple(problems))
    return steps


class _Ring:
    def __init__(self, plan: Plan, steps: Mapping[str, Step]) -> None:
        self._steps = tuple(steps.values())
        self._ids = tuple(steps)
        self._emitted = 0
        self._stopped = [0] * len(steps)  # records refused, by stage
        settings = dict(plan.settings)
        key = settings.get("shard_key")
        self._key = tuple(key.split(".")) if isinstance(key, str) else None
        shards = settings.get("shards")
        self._shards = shards if isinstance(shards, int) else 1
        self._keyless = 0

    def process(self, record: bytes, lane: str) -> Outcome:
        slot = Slot(record)
        shard = 0
        if self._key is not None:
            try:
                shard = bucket_of(slot.value(), self._key, self._shards)
            except Refused as refused:
                self._keyless += 1
                return Outcome((), (Refusal(FROM_INGRESS, refused.code, refused.message),), ())
        number = 0
        try:
            for step in self._steps:
                step(slot)
                number += 1
        except Refused as refused:
            self._stopped[number] += 1
            refusal = Refusal(self._ids[number], refused.code, refused.message)
            return Outcome((), (refusal,), self._ids[:number], (), shard)
        self._emitted += 1
        return Outcome((Emission(EGRESS, slot.data()),), (), self._ids, (), shard)

    def stats(self) -> dict[str, dict[str, int]]:
        told: dict[str, dict[str, int]] = {}
        left = self._emitted + sum(self._stopped)
        if self._key is not None:
            told[FROM_INGRESS] = Tally(left, self._keyless).as_dict()
        for stage_id, refused in zip(self._ids, self._stopped, strict=True):
            left -= refused
            told[stage_id] = Tally(left, refused).as_dict()
        return told
