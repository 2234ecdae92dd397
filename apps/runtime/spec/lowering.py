"""From the model to the plan."""

from __future__ import annotations

from apps.runtime.spec.model import LaneGraph, Role, SingleRing
from apps.runtime.spec.plan import (
    EGRESS,
    FROM_INGRESS,
    GRAPH_VERSION,
    INGRESS,
    OUTSIDE,
    TO_EGRESS,
    Barrier,
    Lane,
    Plan,
    PlanRole,
    PlanStage,
    lane_end,
)


def plan_of(name: str, spec_hash: str, body: SingleRing | LaneGraph) -> Plan:
    """The plan of a model in which no rule is broken."""
    return _of_ring(name, spec_hash, body) if isinstance(body, SingleRing) else _of_graph(name, spec_hash, body)


def _of_ring(name: str, spec_hash: str, ring: SingleRing) -> Plan:
    """Stages stay in their written order, which the rules make a topological one."""
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
    )


def _of_graph(name: str, spec_hash: str, graph: LaneGraph) -> Plan:
    """Roles by how many others lie between them and the farthest ingress, then by name: every role follows what feeds it."""
    roles = _in_order(graph)
    place = {role.name: number for number, role in enumerate(roles)}
    ends = {kind: tuple(end.lane for end in graph.endpoints if end.kind == kind) for kind in (INGRESS, EGRESS)}
    producers: dict[str, list[str]] = {lane.name: [] for lane in graph.lanes}
    consumers: dict[str, list[str]] = {lane.name: [] for lane in graph.lanes}
    for kind, known in ((INGRESS, producers), (EGRESS, consumers)):
        for lane in ends[kind]:
            known[lane].append(OUTSIDE + kind)
    for role in roles:
        for lane in role.rx:
            consumers[lane].append(role.name)
        for lane in role.tx:
            producers[lane].append(role.name)

    def before(*lanes: str) -> tuple[str, ...]:
        """What fills these lanes: the ingress lanes among them, then roles in order."""
        outside = sorted(lane_end(lane) for lane in lanes if lane in outer)
        feeding = {role for lane in lanes for role in producers[lane] if role in place}
        return (*outside, *sorted(feeding, key=place.__getitem__))

    outer = set(ends[INGRESS])
    stages = tuple(
        PlanStage(
            role.name,
            role.op.name,
            role.op.argument,
            tuple(item for item in before(*role.rx) if item in place),
            role.op.capability,
        )
        for role in roles
        if role.op is not None
    )
    barriers = [Barrier(role.name, before(*role.rx)) for role in roles]
    return Plan(
        name=name,
        target=graph.target,
        spec_hash=spec_hash,
        settings=(("on_full", graph.on_full),),
        stages=stages,
        barriers=(*barriers, *(Barrier(lane_end(lane), before(lane)) for lane in ends[EGRESS])),
        lanes=tuple(
            Lane(lane.name, lane.kind, tuple(producers[lane.name]), tuple(consumers[lane.name]), lane.capacity)
            for lane in graph.lanes
        ),
        capabilities=graph.capabilities(),
        roles=tuple(PlanRole(role.name, role.kind, role.rx, role.tx, role.policy, role.hash_key) for role in roles),
        ingress=ends[INGRESS],
        egress=ends[EGRESS],
        plan_v=GRAPH_VERSION,
    )


def _in_order(graph: LaneGraph) -> list[Role]:
    fed_by: dict[str, list[Role]] = {lane.name: [] for lane in graph.lanes}
    waits: dict[str, int] = {lane.name: 0 for lane in graph.lanes}
    for role in graph.roles:
        for lane in role.rx:
            fed_by[lane].append(role)
        for lane in role.tx:
            waits[lane] += 1
    depth = {role.name: 0 for role in graph.roles}
    left = {role.name: len(role.rx) for role in graph.roles}
    ready = [(lane, 0) for lane, number in waits.items() if number == 0]
    level: dict[str, int] = {}
    while ready:
        lane, at = ready.pop()
        for role in fed_by[lane]:
            depth[role.name] = max(depth[role.name], at)
            left[role.name] -= 1
            if left[role.name] == 0:
                for further in role.tx:
                    level[further] = max(level.get(further, 0), depth[role.name] + 1)
                    waits[further] -= 1
                    if waits[further] == 0:
                        ready.append((further, level[further]))
    return sorted(graph.roles, key=lambda role: (depth[role.name], role.name))
