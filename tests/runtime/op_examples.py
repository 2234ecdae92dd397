"""The examples that the ops bring along, as stages of specs and settings of configs."""

from __future__ import annotations

from typing import Any

from apps.runtime.ops import KINDS, Example, OpKind
from apps.runtime.spec import Plan


def op_text(kind: OpKind, example: Example | None = None) -> str:
    """How a spec names the op, with the argument of an example of it."""
    argument = (example or kind.examples[0]).argument
    return kind.name if argument is None else f"{kind.name}:{argument}"


def op_texts() -> list[str]:
    """One of each op there is now."""
    return [op_text(kind) for kind in KINDS.values()]


def example_settings(op: str, stage: str) -> dict[str, Any]:
    """Settings of a stage with this op. Rules also leave the stage's name in the record, under `by`, so that every way that a
    record can take gives other bytes."""
    settings = dict(KINDS[op].examples[0].settings)
    if "rules" in settings:
        settings["rules"] = [f"by:replace_with={stage}", *settings["rules"]]
    return settings


def settings_for(plan: Plan) -> dict[str, dict[str, Any]]:
    """Settings of all stages of a plan."""
    return {stage.id: example_settings(stage.op, stage.id) for stage in plan.stages}
