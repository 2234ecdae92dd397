"""The execution plan: what a spec is lowered to. Deterministic JSON, a function of the canonical text alone.

A SingleRing has plans of version 1, a LaneGraph of version 2: the same members, and those that only a graph has. Bundles hold
plans and hosts restart from them, so neither shape changes; what needs another one gets the next version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from apps.runtime.spec.diagnostics import Diagnostic
from apps.runtime.spec.model import POLICIES, ROLE_KINDS

RING_VERSION = 1
GRAPH_VERSION = 2
INGRESS = "ingress"
EGRESS = "egress"
#: Before `ingress` or `egress`, among a lane's producers and consumers: what is outside the graph.
OUTSIDE = "endpoint:"


def lane_end(name: str) -> str:
    """A lane where records come in or go out, among the names of stages and roles: those have no colon."""
    return "lane:" + name


FROM_INGRESS = lane_end(INGRESS)
TO_EGRESS = lane_end(EGRESS)


class PlanError(ValueError):
    """The JSON is not a plan of a version known here."""


@dataclass(frozen=True, slots=True)
class PlanStage:
    """A step, in the order of execution. `depends_on` are ids of earlier stages; in a graph, names of earlier roles."""

    id: str
    op: str
    argument: str | None
    depends_on: tuple[str, ...]
    capability: str | None


@dataclass(frozen=True, slots=True)
class Barrier:
    """`waiter` (a stage id or a role, or a lane such as `lane:egress`) takes what every one of `waits_for` is done with."""

    waiter: str
    waits_for: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lane:
    """A way records take. `capacity` is None in a ring, whose lanes are its own slots."""

    name: str
    kind: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class PlanRole:
    """A role of a graph, in the order of execution. What a stage does is in the stage of the same id."""

    name: str
    kind: str
    rx: tuple[str, ...]
    tx: tuple[str, ...]
    policy: str | None
    hash_key: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages in order, barriers, lanes with producers and consumers, capabilities, diagnostics, settings by name; of a graph
    also the roles in order and the lanes where records come in (`ingress`) and go out (`egress`).

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
    roles: tuple[PlanRole, ...] = ()
    ingress: tuple[str, ...] = (INGRESS,)
    egress: tuple[str, ...] = (EGRESS,)
    plan_v: int = RING_VERSION

    def as_dict(self) -> dict[str, object]:
        """JSON values only; equal plans give equal dictionaries, key order included."""
        top: dict[str, object] = {
            "plan_v": self.plan_v,
            "name": self.name,
            "target": self.target,
            "spec_hash": self.spec_hash,
            "settings": dict(self.settings),
            "stages": [{**asdict(stage), "depends_on": list(stage.depends_on)} for stage in self.stages],
            "barriers": [{"waiter": item.waiter, "waits_for": list(item.waits_for)} for item in self.barriers],
            "lanes": [_lane_dict(lane) for lane in self.lanes],
            "capabilities": list(self.capabilities),
            "diagnostics": [item.as_dict() for item in self.diagnostics],
        }
        if self.plan_v == GRAPH_VERSION:
            top["roles"] = [{**asdict(role), "rx": list(role.rx), "tx": list(role.tx)} for role in self.roles]
            top["ingress"] = list(self.ingress)
            top["egress"] = list(self.egress)
        return top

    @staticmethod
    def from_dict(value: object) -> Plan:
        """The plan that `as_dict` gave. Raises PlanError for anything else."""
        top = _object(value, "plan")
        version = top.get("plan_v")
        if version not in (RING_VERSION, GRAPH_VERSION) or isinstance(version, bool) or not isinstance(version, int):
            raise PlanError(f"plan_v is neither {RING_VERSION} nor {GRAPH_VERSION}")
        graph = version == GRAPH_VERSION
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
            lanes=tuple(_lane(item) for item in _objects(top, "lanes")),
            capabilities=_texts(top, "capabilities"),
            diagnostics=tuple(_diagnostic(item) for item in _objects(top, "diagnostics")),
            roles=tuple(_role(item) for item in _objects(top, "roles")) if graph else (),
            ingress=_texts(top, "ingress") if graph else (INGRESS,),
            egress=_texts(top, "egress") if graph else (EGRESS,),
            plan_v=version,
        )
        if plan.as_dict() != top:
            raise PlanError("the plan has members that are not known here")
        if graph:
            _check_graph(plan)
        else:
            _check_ring(plan)
        return plan


def _check_ring(plan: Plan) -> None:
    earlier: set[str] = set()
    for stage in plan.stages:
        if stage.id in earlier or not earlier.issuperset(stage.depends_on):
            raise PlanError("the stages are not in an order that can be run")
        earlier.add(stage.id)


def _check_graph(plan: Plan) -> None:
    """Whether the roles can be run in their order: each end of each lane is there, and none takes what a later one gives."""
    ends: dict[str, tuple[list[str], list[str]]] = {lane.name: ([], []) for lane in plan.lanes}
    stages = {stage.id for stage in plan.stages}
    if stages != {role.name for role in plan.roles if role.kind == "stage"} or len(stages) != len(plan.stages):
        raise PlanError("the stages are not those of the roles")
    try:
        for name in plan.ingress:
            ends[name][0].append(OUTSIDE + INGRESS)
        for name in plan.egress:
            ends[name][1].append(OUTSIDE + EGRESS)
        for role in plan.roles:
            for name in role.rx:
                ends[name][1].append(role.name)
            for name in role.tx:
                ends[name][0].append(role.name)
    except KeyError as error:
        raise PlanError("a lane is named that is not there") from error
    for lane in plan.lanes:
        producers, consumers = ends[lane.name]
        if lane.producers != tuple(producers) or lane.consumers != tuple(consumers) or lane.capacity is None:
            raise PlanError(f"the lane {lane.name[:63]} has other ends than the roles say")
    taken: set[str] = set()
    seen: set[str] = set()
    for role in plan.roles:
        known = role.kind in ROLE_KINDS and (role.kind not in POLICIES or role.policy in POLICIES[role.kind])
        if not known or (role.policy == "hash") is (role.hash_key is None):
            raise PlanError(f"the role {role.name[:63]} is of no kind known here")
        taken.update(role.rx)
        if role.name in seen or not role.rx or not role.tx or not taken.isdisjoint(role.tx):
            raise PlanError("the roles are not in an order that can be run")
        seen.add(role.name)


def _lane_dict(lane: Lane) -> dict[str, object]:
    value: dict[str, object] = {
        "name": lane.name,
        "kind": lane.kind,
        "producers": list(lane.producers),
        "consumers": list(lane.consumers),
    }
    if lane.capacity is not None:
        value["capacity"] = lane.capacity
    return value


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


def _lane(item: Mapping[str, object]) -> Lane:
    capacity = item.get("capacity")
    if capacity is not None and (not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 1):
        raise PlanError("a capacity is malformed")
    return Lane(
        _text(item, "name"), _text(item, "kind"), _texts(item, "producers"), _texts(item, "consumers"), capacity
    )


def _role(item: Mapping[str, object]) -> PlanRole:
    return PlanRole(
        name=_text(item, "name"),
        kind=_text(item, "kind"),
        rx=_texts(item, "rx"),
        tx=_texts(item, "tx"),
        policy=_optional_text(item, "policy"),
        hash_key=_optional_text(item, "hash_key"),
    )
