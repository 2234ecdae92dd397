"""What changed in meaning between two specs, as sentences a reviewer can read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from apps.runtime.spec.compile import Compilation
from apps.runtime.spec.plan import Plan, PlanStage

Kind = Literal[
    "not_comparable",
    "name_changed",
    "target_changed",
    "setting_changed",
    "stage_added",
    "stage_removed",
    "stage_moved",
    "op_changed",
    "depends_on_changed",
    "capability_gained",
    "capability_lost",
]


@dataclass(frozen=True, slots=True)
class Change:
    """One change. `before` and `after` are None where there is no such side; `text` says it in a sentence."""

    kind: Kind
    subject: str
    before: str | None
    after: str | None
    text: str

    def as_dict(self) -> dict[str, str | None]:
        """`{kind, subject, before, after, text}`."""
        return asdict(self)


def semantic_diff(old: Compilation | None, new: Compilation) -> tuple[Change, ...]:
    """What `new` changes against `old`; against nothing (None, or a spec with errors) everything is new.

    Stages are matched by id. Equal hashes give no change. A `new` with errors gives the one change
    `not_comparable`.
    """
    if new.plan is None:
        subject = new.name or "spec"
        text = f"{subject} has errors and can't be compared."
        return (Change("not_comparable", subject, None, None, text),)
    before = old.plan if old is not None else None
    if before is not None and before.spec_hash == new.plan.spec_hash:
        return ()
    return (*_heads(before, new.plan), *_capabilities(before, new.plan), *_stages(before, new.plan))


def _heads(old: Plan | None, new: Plan) -> list[Change]:
    if old is None:
        return []
    changes: list[Change] = []
    if old.name != new.name:
        text = f"The pipeline is called {new.name}; it was {old.name}."
        changes.append(Change("name_changed", "pipeline.name", old.name, new.name, text))
    if old.target != new.target:
        text = f"The target is {new.target}; it was {old.target}."
        changes.append(Change("target_changed", "pipeline.target", old.target, new.target, text))
    was, now = dict(old.settings), dict(new.settings)
    for name in dict.fromkeys([*now, *was]):
        before, after = was.get(name), now.get(name)
        if before != after:
            text = f"{name} is {_shown(after)}; it was {_shown(before)}."
            changes.append(Change("setting_changed", name, _text(before), _text(after), text))
    return changes


def _capabilities(old: Plan | None, new: Plan) -> list[Change]:
    was = set(old.capabilities) if old is not None else set()
    now = set(new.capabilities)
    gained = [
        Change("capability_gained", name, None, name, f"The pipeline now needs the capability {name}.")
        for name in sorted(now - was)
    ]
    lost = [
        Change("capability_lost", name, name, None, f"The pipeline no longer needs the capability {name}.")
        for name in sorted(was - now)
    ]
    return gained + lost


def _stages(old: Plan | None, new: Plan) -> list[Change]:
    was = {stage.id: stage for stage in old.stages} if old is not None else {}
    now = {stage.id: stage for stage in new.stages}
    changes = [
        Change("stage_removed", stage.id, _op(stage), None, f"Stage {stage.id} ({_op(stage)}) is gone.")
        for stage in was.values()
        if stage.id not in now
    ]
    moved = _moved([name for name in was if name in now], [name for name in now if name in was])
    for stage in now.values():
        former = was.get(stage.id)
        if former is None:
            text = f"Stage {stage.id} ({_op(stage)}) is new, {_after(stage)}."
            changes.append(Change("stage_added", stage.id, None, _op(stage), text))
            continue
        if stage.id in moved:
            places = _place(list(was), stage.id), _place(list(now), stage.id)
            text = f"Stage {stage.id} runs in place {places[1]}; it was in place {places[0]}."
            changes.append(Change("stage_moved", stage.id, *places, text))
        if _op(former) != _op(stage):
            text = f"Stage {stage.id} does {_op(stage)}; it did {_op(former)}."
            changes.append(Change("op_changed", stage.id, _op(former), _op(stage), text))
        if former.depends_on != stage.depends_on and set(former.depends_on) != set(stage.depends_on):
            text = f"Stage {stage.id} runs {_after(stage)}; it ran {_after(former)}."
            before, after = ",".join(former.depends_on), ",".join(stage.depends_on)
            changes.append(Change("depends_on_changed", stage.id, before, after, text))
    return changes


def _moved(was: list[str], now: list[str]) -> set[str]:
    """The fewest of the common stages whose moving turns the one order into the other."""
    place = {name: number for number, name in enumerate(was)}
    chains: list[list[str]] = []
    for name in now:
        fitting = [chain for chain in chains if place[chain[-1]] < place[name]]
        best = max(fitting, key=len) if fitting else []
        chains.append([*best, name])
    kept: set[str] = set().union(*sorted(chains, key=len)[-1:])
    return {name for name in now if name not in kept}


def _op(stage: PlanStage) -> str:
    return stage.op if stage.argument is None else f"{stage.op}:{stage.argument}"


def _after(stage: PlanStage) -> str:
    return "after " + " and ".join(stage.depends_on) if stage.depends_on else "first on the ingress"


def _place(names: list[str], name: str) -> str:
    return str(names.index(name) + 1)


def _text(value: str | int | None) -> str | None:
    return None if value is None else str(value)


def _shown(value: str | int | None) -> str:
    return "not set" if value is None else str(value)
