"""The content of a spec once it has been read: no text, no lines, no errors."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from apps.runtime.ops.registry import Op

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}(?:\.[A-Za-z_][A-Za-z0-9_-]{0,62}){0,7}")

DEFAULT_CAPACITY = 1024
FANOUT = "fanout_broadcast"
EVENTS = "events"
LANE_KINDS = (EVENTS, "journal", "sequenced_slots", FANOUT)
ENDPOINT_KINDS = ("ingress", "egress")
ROLE_KINDS = ("stage", "bridge", "router", "merge")
POLICIES = {"router": ("broadcast", "round_robin", "hash"), "merge": ("arrival", "ordered")}


def is_name(text: str) -> bool:
    """Whether `text` can name a pipeline, a stage, a lane or a role."""
    return _NAME.fullmatch(text) is not None


def is_field(text: str) -> bool:
    """Whether `text` can name the field of a record that shards or routes it, such as `customer.id`."""
    return _FIELD.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a ring; `depends_on` are indexes of earlier stages, increasing."""

    id: str
    op: Op
    depends_on: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SingleRing:
    """A stage DAG over one sequenced ring, defaults filled in."""

    shards: int
    ordering: str
    producer: str
    scheduling: str
    shard_key: str | None
    stages: tuple[Stage, ...]

    target = "SingleRing"

    def canonical_lines(self) -> list[str]:
        """The target's own keys in their one order, defaults written out."""
        lines = [
            f"single_ring.shards={self.shards}",
            f"single_ring.ordering={self.ordering}",
            f"single_ring.producer={self.producer}",
            f"single_ring.scheduling={self.scheduling}",
        ]
        if self.shard_key is not None:
            lines.append(f"single_ring.shard_key={self.shard_key}")
        for index, stage in enumerate(self.stages):
            prefix = f"single_ring.stages.{index}"
            lines += [f"{prefix}.id={stage.id}", f"{prefix}.op={stage.op.text}"]
            lines += [f"{prefix}.depends_on.{at}={number}" for at, number in enumerate(stage.depends_on)]
        return lines

    def capabilities(self) -> tuple[str, ...]:
        """What the ops need, sorted."""
        return tuple(sorted({stage.op.capability for stage in self.stages if stage.op.capability}))


@dataclass(frozen=True, slots=True)
class GraphLane:
    """A lane of a graph. `consumers` is 1 unless the kind is `fanout_broadcast`."""

    name: str
    kind: str
    capacity: int
    consumers: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where records enter a lane from outside (`ingress`) or leave it (`egress`)."""

    lane: str
    kind: str


@dataclass(frozen=True, slots=True)
class Role:
    """What takes records from the lanes `rx` and puts them on the lanes `tx`; `op` is a stage's, `policy` a router's or merge's."""

    name: str
    kind: str
    rx: tuple[str, ...]
    tx: tuple[str, ...]
    op: Op | None = None
    policy: str | None = None
    hash_key: str | None = None


@dataclass(frozen=True, slots=True)
class LaneGraph:
    """Named lanes, endpoints and roles, defaults filled in.

    Everything is known by its name and the numbers in the text mean nothing, so each list is sorted: lanes and roles by
    name, endpoints with ingresses first, then by lane. A role's own `rx` and `tx` keep their order, which does mean something,
    save where a router copies to every `tx` alike.
    """

    on_full: str
    lanes: tuple[GraphLane, ...]
    endpoints: tuple[Endpoint, ...]
    roles: tuple[Role, ...]

    target = "LaneGraph"

    @staticmethod
    def of(on_full: str, lanes: list[GraphLane], endpoints: list[Endpoint], roles: list[Role]) -> LaneGraph:
        """The graph of these, sorted."""
        return LaneGraph(
            on_full,
            tuple(sorted(lanes, key=lambda lane: lane.name)),
            tuple(sorted(endpoints, key=lambda end: (ENDPOINT_KINDS.index(end.kind), end.lane))),
            tuple(
                replace(role, tx=tuple(sorted(role.tx))) if role.policy == "broadcast" else role
                for role in sorted(roles, key=lambda role: role.name)
            ),
        )

    def canonical_lines(self) -> list[str]:
        """The target's own keys in their one order, defaults written out."""
        lines = [f"lane_graph.on_full={self.on_full}"]
        for index, lane in enumerate(self.lanes):
            prefix = f"lane_graph.lanes.{index}"
            lines += [f"{prefix}.name={lane.name}", f"{prefix}.kind={lane.kind}", f"{prefix}.capacity={lane.capacity}"]
            if lane.kind == FANOUT:
                lines.append(f"{prefix}.consumers={lane.consumers}")
        for index, end in enumerate(self.endpoints):
            lines += [f"lane_graph.endpoints.{index}.lane={end.lane}", f"lane_graph.endpoints.{index}.kind={end.kind}"]
        for index, role in enumerate(self.roles):
            prefix = f"lane_graph.roles.{index}"
            lines += [f"{prefix}.name={role.name}", f"{prefix}.kind={role.kind}"]
            if role.op is not None:
                lines.append(f"{prefix}.op={role.op.text}")
            lines += _ports(f"{prefix}.rx", role.rx, indexed=role.kind == "merge")
            lines += _ports(f"{prefix}.tx", role.tx, indexed=role.kind == "router")
            if role.policy is not None:
                lines.append(f"{prefix}.policy={role.policy}")
            if role.hash_key is not None:
                lines.append(f"{prefix}.hash_key={role.hash_key}")
        return lines

    def capabilities(self) -> tuple[str, ...]:
        """What the ops need, sorted."""
        return tuple(sorted({role.op.capability for role in self.roles if role.op and role.op.capability}))


def _ports(key: str, lanes: tuple[str, ...], *, indexed: bool) -> list[str]:
    return [f"{key}.{at}={lane}" for at, lane in enumerate(lanes)] if indexed else [f"{key}={lanes[0]}"]


def canonical_text(name: str, body: SingleRing | LaneGraph) -> str:
    """The one text of this meaning: known keys, one order, one trailing newline."""
    head = ["spec.version=1", f"pipeline.name={name}", f"pipeline.target={body.target}"]
    return "\n".join([*head, *body.canonical_lines()]) + "\n"
