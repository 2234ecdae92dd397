"""The execution plan:

what a spec is lowered to. Deterministic JSON, a function of the canonical text alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from apps.runtime.spec.diagnostics import Diagnostic
from apps.runtime.spec.model import SingleRing

PLAN_VERSION = 1
INGRESS = "ingress"
EGRESS = "egress"
# In barriers, where a stage might have the same name: ids have no colon.
FROM_INGRESS = "lane:" + INGRESS
TO_EGRESS = "lane:" + EGRESS


class PlanError(ValueError):
    """The JSON is not a plan of a version known here."""


@dataclass(frozen=True, slots=True)
class PlanStage:
    """A step, in the order of execution. `depends_on` are ids of earlier stages."""

    id: str
    op: str
    argument: str | None
    depends_on: tuple[str, ...]
    capability: str | None


@dataclass(frozen=True, slots=True)
class Barrier:
    """`waiter` (a stage id, or `lane:egress`) takes a slot only once every one of `waits_for` has left it."""

    waiter: str
    waits_for: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lane:
    """A way records take into or out of the stages."""

    name: str
    kind: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages in order, barriers, lanes with producers and consumers, capabilities, diagnostics, settings by
    name.

    `diagnostics` are those of the canonical text: what was dropped on the way there (unknown keys) is not
    part of the plan, so that every host that compiles the canonical text gets the very same plan.
    """

    name: str
    target: str
    spec_hash: str
    settings: tuple[tuple[str, str | int | None], ...]
    stages: tuple[PlanStage, ...]
    barriers: tuple[Barrier, ...]
    lanes: tuple[Lane, ...]
    capabilities: tuple[str, ...]
    diagnostics: tuple[Diagnostic, ...] = ()
    plan_v: int = PLAN_VERSION

    def as_dict(self) -> dict[str, object]:
        """JSON values only; equal plans give equal dictionaries, key order included."""
        return {
            "plan_v": self.plan_v,
            "name": self.name,
            "target": self.target,
            "spec_hash": self.spec_hash,
            "settings": dict(self.settings),
            "stages": [{**asdict(stage), "depends_on": list(stage.depends_on)} for stage in self.stages],
            "barriers": [{"waiter": item.waiter, "waits_for": list(item.waits_for)} for item in self.barriers],
            "lanes": [
                {
                    "name": lane.name,
                    "kind": lane.kind,
                    "producers": list(lane.producers),
                    "consumers": list(lane.consumers),
                }
                for lane in self.lanes
            ],
            "capabilities": list(self.capabilities),
            "diagnostics": [item.as_dict() for item in self.diagnostics],
        }

    @staticmethod
    def from_dict(value: object) -> Plan:
        """The plan that `as_dict` gave. Raises PlanError for anything else."""
        top = _object(value, "plan")
        if top.get("plan_v") != PLAN_VERSION or isinstance(top.get("plan_v"), bool):
            raise PlanError(f"plan_v is not {PLAN_VERSION}")
        settings = _object(top.get("settings"), "settings")
        plan = Plan(
            name=_text(top, "name"),
            target=_text(top, "target"),
            spec_hash=_text(top, "spec_hash"),
            settings=tuple(sorted((name, _setting(item)) for name, item in settings.items())),
            stages=tuple(_stage(item) for item in _list(top, "stages")),
            barriers=tuple(
                Barrier(_text(item, "waiter"), _texts(item, "waits_for")) for item in _objects(top, "barriers")
            ),
            lanes=tuple(
                Lane(
                    _text(item, "name"),
                    _text(item, "kind"),
                    _texts(item, "producers"),
                    _texts(item, "consumers"),
                )
                for item in _objects(top, "lanes")
            ),
            capabilities=_texts(top, "capabilities"),
            diagnostics=tuple(_diagnostic(item) for item in _objects(top, "diagnostics")),
        )
        if plan.as_dict() != top:
            raise PlanError("the plan has members that are not known here")
        earlier: set[str] = set()
        for stage in plan.stages:
            if stage.id in earlier or not earlier.issuperset(stage.depends_on):
                raise PlanError("the stages are not in an order that can be run")
            earlier.add(stage.id)
        return plan


def plan_of_ring(name: str, spec_hash: str, ring: SingleRing, diagnostics: Sequence[Diagnostic]) -> Plan:
    """Lower a ring. Stages stay in their written order, which the rules make a topological one."""
    ids = [stage.id for stage in ring.stages]
    stages = tuple(
        PlanStage(
            id=stage.id,
            op=stage.op.name,
            argument=stage.op.argument,
            depends_on=tuple(ids[number] for number in stage.depends_on),
            capability=stage.op.capability,
        )
        for stage in ring.stages
    )
    needed = {number for stage in ring.stages for number in stage.depends_on}
    roots = tuple(stage.id for stage in stages if not stage.depends_on)
    leaves = tuple(stage_id for number, stage_id in enumerate(ids) if number not in needed)
    barriers = [Barrier(stage.id, stage.depends_on or (FROM_INGRESS,)) for stage in stages]
    return Plan(
        name=name,
        target=ring.target,
        spec_hash=spec_hash,
        settings=(
            ("ordering", ring.ordering),
            ("producer", ring.producer),
            ("scheduling", ring.scheduling),
            ("shard_key", ring.shard_key),
            ("shards", ring.shards),
        ),
        stages=stages,
        barriers=(*barriers, Barrier(TO_EGRESS, leaves)),
        lanes=(
            Lane(INGRESS, "sequenced_slots", ("source",), roots),
            Lane(EGRESS, "sequenced_slots", leaves, ("sink",)),
        ),
        capabilities=ring.capabilities(),
        diagnostics=tuple(diagnostics),
    )


def _object(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise PlanError(f"{what} is not an object")
    return value


def _list(value: Mapping[str, object], name: str) -> list[object]:
    items = value.get(name)
    if not isinstance(items, list):
        raise PlanError(f"{name} is not a list")
    return items


def _objects(value: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    return [_object(item, f"an item of {name}") for item in _list(value, name)]


def _text(value: Mapping[str, object], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise PlanError(f"{name} is not a string")
    return text


def _optional_text(value: Mapping[str, object], name: str) -> str | None:
    return None if value.get(name) is None else _text(value, name)


def _texts(value: Mapping[str, object], name: str) -> tuple[str, ...]:
    items = _list(value, name)
    texts = tuple(item for item in items if isinstance(item, str))
    if len(texts) != len(items):
        raise PlanError(f"{name} holds more than strings")
    return texts


def _setting(value: object) -> str | int | None:
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return value
    raise PlanError("a setting is not a string, an integer or null")


def _stage(value: object) -> PlanStage:
    item = _object(value, "a stage")
    return PlanStage(
        id=_text(item, "id"),
        op=_text(item, "op"),
        argument=_optional_text(item, "argument"),
        depends_on=_texts(item, "depends_on"),
        capability=_optional_text(item, "capability"),
    )


def _diagnostic(item: Mapping[str, object]) -> Diagnostic:
    severity, line = item.get("severity"), item.get("line")
    if severity not in ("error", "warning") or not isinstance(line, int) or isinstance(line, bool):
        raise PlanError("a diagnostic is malformed")
    return Diagnostic(
        "error" if severity == "error" else "warning",
        _text(item, "code"),
        line,
        _text(item, "key"),
        _text(item, "message"),
        _text(item, "hint"),
    )
