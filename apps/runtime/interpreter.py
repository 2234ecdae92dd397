"""Runs a plan over records, deterministically: the same plan, settings and records give the same bytes.

A record lives in one slot of the ring. Every record passes every stage, in the plan's order; a stage sees
the slot as its dependencies left it, which is also as every stage before it in the order left it. So
nothing that one stage removed can come back by another branch. A stage that refuses a record ends its way:
no later stage sees it and nothing is emitted.

What `http_post` and `exec` do goes out through the port `Effects`. A record is forwarded once its effect has returned; an
effect that fails (EffectFailed) ends the processing of the record, which then counts as never seen and may be run again: its
earlier effects then happen again, so effects are at least once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from apps.runtime.ops import KINDS, Effects, Op, Refused, SettingProblem, Slot, Step, build_step
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


class Interpreter:
    """A plan with its settings, ready to run. Not for use by two threads at once.

    Raises SettingsError when `stage_settings` (stage id → `{rules?, schema?}`) do not fit the plan, or (code
    `effects_missing`) when the plan acts on the outside world and `effects` is None.
    """

    def __init__(
        self, plan: Plan, stage_settings: Mapping[str, Mapping[str, object]], effects: Effects | None = None
    ) -> None:
        self.plan = plan
        self._steps: list[tuple[str, Step]] = []
        self._ids = tuple(stage.id for stage in plan.stages)
        self._emitted = 0
        self._stopped = [0] * len(self._ids)  # records refused, by stage
        problems = [
            StageProblem(str(name), f"/{name}", "unknown_stage", "The plan has no such stage.")
            for name in stage_settings
            if name not in self._ids
        ]
        for stage in plan.stages:
            step: Step | None = None
            wrong: tuple[SettingProblem, ...]
            if stage.op in KINDS:
                step, wrong = build_step(Op(stage.op, stage.argument), stage_settings.get(stage.id, {}), effects)
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
        """Send one record (its bytes, without a line end) through every stage.

        Raises EffectFailed, and counts nothing, when an effect failed: the record may be processed again.
        """
        slot = Slot(record)
        for number, (stage_id, step) in enumerate(self._steps):
            try:
                step(slot)
            except Refused as refused:
                self._stopped[number] += 1
                return Outcome(None, Refusal(stage_id, refused.code, refused.message), self._ids[:number])
        self._emitted += 1
        return Outcome(slot.data(), None, self._ids)

    def run(self, records: Iterable[bytes]) -> Iterator[Outcome]:
        """`process` each of `records`, in order, as they are asked for."""
        return map(self.process, records)

    def stats(self) -> dict[str, dict[str, int]]:
        """Stage id → `{received, forwarded, refused}`, in the plan's order: `received` is `forwarded` plus `refused`."""
        told: dict[str, dict[str, int]] = {}
        left = self._emitted + sum(self._stopped)
        for stage_id, refused in zip(self._ids, self._stopped, strict=True):
            told[stage_id] = {"received": left, "forwarded": left - refused, "refused": refused}
            left -= refused
        return told
