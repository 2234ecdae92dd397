"""`dataguard_check`: refuses records that are not JSON objects, or miss the schema."""

from __future__ import annotations

from collections.abc import Callable

from apps.runtime.ops.kind import Example, OpKind, StageInput, Step
from apps.runtime.ops.records import Refused
from apps.runtime.ops.schema import Schema
from apps.runtime.ops.settings import SCHEMA
from apps.runtime.ops.slot import Slot


def schema_check(schema: Schema) -> Callable[[Slot], None]:
    """A function that raises Refused `schema_violation` for a record that misses the schema, another for what is no JSON object."""
    violations = schema.violations

    def check(slot: Slot) -> None:
        found = violations(slot.value())
        if found:
            raise Refused("schema_violation", "; ".join(item.message for item in found))

    return check


def _build(stage: StageInput) -> Step:
    return Step(schema_check(stage.settings[SCHEMA]))


_ORDERS = {"schema": {"required": ["id"], "properties": {"id": {"type": "integer", "maximum": 9999}}}}

DATAGUARD_CHECK = OpKind(
    name="dataguard_check",
    does="refuses records that are not JSON objects, or miss the schema; forwards the same bytes",
    since="0.1.0",
    build=_build,
    settings=(SCHEMA,),
    examples=(
        Example(record=b'{"id": 7, "total": 1.50}', result=b'{"id": 7, "total": 1.50}', settings=_ORDERS),
        Example(record=b'{"total": 1.50}', result=None, settings=_ORDERS),
    ),
)
