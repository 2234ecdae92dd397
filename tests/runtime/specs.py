"""Specs for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from apps.runtime.spec import Compilation, Plan, compile_spec

HEAD = "spec.version=1\npipeline.name=orders\npipeline.target=SingleRing\n"
ONE = HEAD + "single_ring.stages.0.id=a\nsingle_ring.stages.0.op=identity\n"

Step = tuple[str, str, Sequence[int]]


def ring(*steps: Step, name: str = "orders") -> str:
    """The text of a ring with these (id, op, dependencies)."""
    lines = ["spec.version=1", f"pipeline.name={name}", "pipeline.target=SingleRing"]
    for number, (stage_id, op, depends_on) in enumerate(steps):
        prefix = f"single_ring.stages.{number}"
        lines += [f"{prefix}.id={stage_id}", f"{prefix}.op={op}"]
        lines += [f"{prefix}.depends_on.{at}={value}" for at, value in enumerate(depends_on)]
    return "\n".join(lines) + "\n"


def compiled(*steps: Step, name: str = "orders") -> Compilation:
    done = compile_spec(ring(*steps, name=name))
    assert done.ok, done.diagnostics
    return done


def plan_of(*steps: Step) -> Plan:
    plan = compiled(*steps).plan
    assert plan is not None
    return plan


Lane = tuple[str, str] | tuple[str, str, Mapping[str, object]]
Role = Mapping[str, object]
GRAPH_HEAD = "spec.version=1\npipeline.name=orders\npipeline.target=LaneGraph\n"


def graph(
    lanes: Sequence[Lane], ends: Sequence[tuple[str, str]], roles: Mapping[str, Role], *, on_full: str | None = None
) -> str:
    """The text of a graph: (name, kind, more keys) of each lane, (kind, lane) of each endpoint, roles by name.

    A role's `rx` or `tx` that is a list becomes `rx.0`, `rx.1`, ...
    """
    lines = [GRAPH_HEAD.rstrip("\n")]
    if on_full is not None:
        lines.append(f"lane_graph.on_full={on_full}")
    for number, (name, kind, *more) in enumerate(lanes):
        values = {"name": name, "kind": kind, **(more[0] if more else {})}
        lines += [f"lane_graph.lanes.{number}.{key}={value}" for key, value in values.items()]
    for number, (kind, lane) in enumerate(ends):
        lines += [f"lane_graph.endpoints.{number}.lane={lane}", f"lane_graph.endpoints.{number}.kind={kind}"]
    for number, (name, role) in enumerate(roles.items()):
        for key, value in {"name": name, **role}.items():
            prefix = f"lane_graph.roles.{number}.{key}"
            if isinstance(value, list):
                lines += [f"{prefix}.{at}={item}" for at, item in enumerate(value)]
            else:
                lines.append(f"{prefix}={value}")
    return "\n".join(lines) + "\n"


def bridge(rx: str, tx: str) -> Role:
    return {"kind": "bridge", "rx": rx, "tx": tx}


def stage(op: str, rx: str, tx: str) -> Role:
    return {"kind": "stage", "op": op, "rx": rx, "tx": tx}


def router(policy: str, rx: str, *tx: str, **more: str) -> Role:
    return {"kind": "router", "rx": rx, "tx": list(tx), "policy": policy, **more}


def merge(policy: str, tx: str, *rx: str) -> Role:
    return {"kind": "merge", "rx": list(rx), "tx": tx, "policy": policy}


def graph_plan(text: str) -> Plan:
    done = compile_spec(text)
    assert done.plan is not None, done.diagnostics
    return done.plan
