"""Specs for tests."""

from __future__ import annotations

from collections.abc import Sequence

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
