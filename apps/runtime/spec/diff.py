"""What changed in meaning between two specs, as sentences a reviewer can read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from apps.runtime.spec.compile import Compilation
from apps.runtime.spec.plan import EGRESS, GRAPH_VERSION, INGRESS, RING_VERSION, Lane, Plan, PlanRole, PlanStage

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
    "lane_added",
    "lane_removed",
    "lane_kind_changed",
    "capacity_changed",
    "endpoint_added",
    "endpoint_removed",
    "role_added",
    "role_removed",
    "role_kind_changed",
    "policy_changed",
    "hash_key_changed",
    "rx_changed",
    "tx_changed",
]


@dataclass(frozen=True, slots=True)
class Change:
    """One change. `before` and `after` are None where there is no such side; `text` is a sentence."""

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

    Stages are matched by id, lanes and roles by name. Equal hashes give no change. A `new` with errors gives the one change
    `not_comparable`.
    """
    if new.plan is None:
        subject = new.name or "spec"
        text = f"{subject} has errors and can't be compared."
        return (Change("not_comparable", subject, None, None, text),)
    before = old.plan if old is not None else None
    if before is not None and before.spec_hash == new.plan.spec_hash:
        return ()
    return (
        *_heads(before, new.plan),
        *_capabilities(before, new.plan),
        *_stages(_ring_stages(before), _ring_stages(new.plan)),
        *_lanes(_graph_lanes(before), _graph_lanes(new.plan)),
        *_endpoints(before, new.plan),
        *_roles(before, new.plan),
    )


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


def _ring_stages(plan: Plan | None) -> dict[str, PlanStage]:
    """The stages of a ring, whose order and dependencies mean something; those of a graph are listed as roles."""
    return {stage.id: stage for stage in plan.stages} if plan is not None and plan.plan_v == RING_VERSION else {}


def _stages(was: dict[str, PlanStage], now: dict[str, PlanStage]) -> list[Change]:
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


def _graph_lanes(plan: Plan | None) -> dict[str, Lane]:
    return {lane.name: lane for lane in plan.lanes} if plan is not None and plan.plan_v == GRAPH_VERSION else {}


def _lanes(was: dict[str, Lane], now: dict[str, Lane]) -> list[Change]:
    changes = [
        Change("lane_removed", lane.name, lane.kind, None, f"Lane {lane.name} ({lane.kind}) is gone.")
        for lane in was.values()
        if lane.name not in now
    ]
    for lane in now.values():
        former = was.get(lane.name)
        if former is None:
            text = f"Lane {lane.name} ({lane.kind}, {lane.capacity}) is new."
            changes.append(Change("lane_added", lane.name, None, lane.kind, text))
            continue
        if former.kind != lane.kind:
            text = f"Lane {lane.name} is a lane of the kind {lane.kind}; it was of the kind {former.kind}."
            changes.append(Change("lane_kind_changed", lane.name, former.kind, lane.kind, text))
        if former.capacity != lane.capacity:
            text = f"Lane {lane.name} holds {lane.capacity} records; it held {former.capacity}."
            changes.append(Change("capacity_changed", lane.name, str(former.capacity), str(lane.capacity), text))
    return changes


def _endpoints(old: Plan | None, new: Plan) -> list[Change]:
    def ends(plan: Plan | None) -> dict[tuple[str, str], str]:
        if plan is None or plan.plan_v != GRAPH_VERSION:
            return {}
        incoming = {(INGRESS, lane): "come in" for lane in plan.ingress}
        return incoming | {(EGRESS, lane): "go out" for lane in plan.egress}

    was, now = ends(old), ends(new)
    removed = [
        Change("endpoint_removed", lane, kind, None, f"Records no longer {way} on lane {lane}.")
        for (kind, lane), way in was.items()
        if (kind, lane) not in now
    ]
    added = [
        Change("endpoint_added", lane, None, kind, f"Records now {way} on lane {lane}.")
        for (kind, lane), way in now.items()
        if (kind, lane) not in was
    ]
    return removed + added


def _roles(old: Plan | None, new: Plan) -> list[Change]:
    was = {role.name: role for role in old.roles} if old is not None else {}
    now = {role.name: role for role in new.roles}
    ops_were = {stage.id: _op(stage) for stage in old.stages} if old is not None else {}
    ops = {stage.id: _op(stage) for stage in new.stages}
    changes = [
        Change(
            "role_removed",
            role.name,
            _role(role, ops_were),
            None,
            f"Role {role.name} ({_role(role, ops_were)}) is gone.",
        )
        for role in was.values()
        if role.name not in now
    ]
    for role in now.values():
        former = was.get(role.name)
        if former is None:
            text = f"Role {role.name} ({_role(role, ops)}) is new, from {_listed(role.rx)} to {_listed(role.tx)}."
            changes.append(Change("role_added", role.name, None, _role(role, ops), text))
            continue
        sides: tuple[tuple[Kind, str | None, str | None, str], ...] = (
            ("role_kind_changed", former.kind, role.kind, "is a"),
            ("op_changed", ops_were.get(role.name), ops.get(role.name), "does"),
            ("policy_changed", former.policy, role.policy, "has the policy"),
            ("hash_key_changed", former.hash_key, role.hash_key, "hashes the field"),
            ("rx_changed", ", ".join(former.rx), ", ".join(role.rx), "takes records from"),
            ("tx_changed", ", ".join(former.tx), ", ".join(role.tx), "puts records on"),
        )
        for kind, before, after, does in sides:
            if before != after:
                text = f"Role {role.name} {does} {_shown(after)}; before: {_shown(before)}."
                changes.append(Change(kind, role.name, before, after, text))
    return changes


def _role(role: PlanRole, ops: dict[str, str]) -> str:
    return ops.get(role.name) or (role.kind if role.policy is None else f"{role.kind} {role.policy}")


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(names)


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
