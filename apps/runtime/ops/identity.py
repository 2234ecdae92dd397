"""`identity`: forwards the bytes, whatever they are."""

from __future__ import annotations

from apps.runtime.ops.kind import Example, OpKind, StageInput, Step


def _build(stage: StageInput) -> Step:
    return Step(lambda slot: None)


IDENTITY = OpKind(
    name="identity",
    does="forwards the bytes, whatever they are",
    since="0.1.0",
    build=_build,
    examples=(Example(record=b"any bytes", result=b"any bytes"),),
)
