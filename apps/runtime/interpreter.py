"""Runs a plan over records, deterministically: the same plan, settings and records give the same bytes.

A record lives in one slot of the ring. Every record passes every stage, in the plan's order; a stage sees
the slot as its dependencies left it, which is also as every stage before it in the order left it. So
nothing that one stage removed can come back by another branch. A stage that refuses a record ends its way:
no later stage sees it and nothing is emitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from apps.runtime.ops import KINDS, Op, Refused, SettingProblem, Slot, Step, build_step
from apps.runtime.spec.plan import Plan


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


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which stage refused a record, and why. The message holds no value of the record."""

    stage: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one record:

    exactly one of `emitted` and `refused` is set. `passed` are the stages it passed.
    """

    emitted: bytes | None
    refused: Refusal | None
    passed: tuple[str, ...]


@dataclass(slots=True)
class StageStats:
    """What a stage has done so far: `received` is `forwarded` plus `refused`."""

    received: int = 0
    forwarded: int = 0
    refused: int = 0

    def as_dict(self) -> dict[str, int]:
        return {"received": self.received, "forwarded": self.forwarded, "refused": self.refused}


class Interpreter:
    """A plan with its settings, ready to run. Not for use by two threads at once.

    Raises SettingsError when `stage_settings` (stage id → `{rules?, schema?}`) do not fit the plan.
    """

    def __init__(self, plan: Plan, stage_settings: Mapping[str, Mapping[str, object]]) -> None:
        self.plan = plan
        self._steps: list[tuple[str, Step]] = []
        self._ids = tuple(stage.id for stage in plan.stages)
        self._stats = {stage_id: StageStats() for stage_id in self._ids}
        problems = [
            StageProblem(str(name), f"/{name}", "unknown_stage", "The plan has no such stage.")
            for name in stage_settings
            if name not in self._stats
        ]
        for stage in plan.stages:
            step: Step | None = None
            wrong: tuple[SettingProblem, ...]
            if stage.op in KINDS:
                step, wrong = build_step(Op(stage.op, stage.argument), stage_settings.get(stage.id, {}))
            else:
                wrong = (SettingProblem("", "unknown_op", f"There is no op {stage.op[:40]}."),)
            problems += [
                StageProblem(stage.id, f"/{stage.id}{item.pointer}", item.code, item.message) for item in wrong
            ]
            if step is not None:
                self._steps.append((stage.id, step))
        if problems:
            raise SettingsError(tuple(problems))

    def process(self, record: bytes) -> Outcome:
        """Send one record (its bytes, without a line end) through every stage."""
        slot = Slot(record)
        for number, (stage_id, step) in enumerate(self._steps):
            stats = self._stats[stage_id]
            stats.received += 1
            try:
                step(slot)
            except Refused as refused:
                stats.refused += 1
                return Outcome(None, Refusal(stage_id, refused.code, refused.message), self._ids[:number])
            stats.forwarded += 1
        return Outcome(slot.data(), None, self._ids)

    def run(self, records: Iterable[bytes]) -> Iterator[Outcome]:
        """`process` each of `records`, in order, as they are asked for."""
        return map(self.process, records)

    def stats(self) -> dict[str, dict[str, int]]:
        """Stage id → `{received, forwarded, refused}`, in the plan's order."""
        return {stage_id: stats.as_dict() for stage_id, stats in self._stats.items()}
