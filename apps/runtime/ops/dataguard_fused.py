"""`dataguard_fused`: `dataguard_check` and `dataguard_redact` in one stage."""

from __future__ import annotations

from apps.runtime.ops.dataguard_check import schema_check
from apps.runtime.ops.kind import Example, OpKind, StageInput, Step
from apps.runtime.ops.rules import RuleSet
from apps.runtime.ops.settings import RULES, SCHEMA
from apps.runtime.ops.slot import Slot


def _build(stage: StageInput) -> Step:
    check, rules = schema_check(stage.settings[SCHEMA]), RuleSet(stage.settings[RULES])
    apply = rules.apply

    def check_and_redact(slot: Slot) -> None:
        check(slot)
        slot.rewrite(apply)

    return Step(check_and_redact, rules)


_SETTINGS = {"schema": {"required": ["id"]}, "rules": ["email:hash"]}

DATAGUARD_FUSED = OpKind(
    name="dataguard_fused",
    does="check, then redact",
    since="0.1.0",
    build=_build,
    settings=(SCHEMA, RULES),
    examples=(
        Example(
            record=b'{"id": 7, "email": "a@b.c"}',
            result=b'{"id":7,"email":"a6aef3a5b0b7d07caa264745d57c30d117a6947537ff3ec7088f670679928d13"}',
            settings=_SETTINGS,
        ),
        Example(record=b'{"email": "a@b.c"}', result=None, settings=_SETTINGS),
    ),
)
