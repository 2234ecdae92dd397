"""`dataguard_redact`: applies rules to the record."""

from __future__ import annotations

from apps.runtime.ops.kind import Example, OpKind, StageInput, Step
from apps.runtime.ops.rules import RuleSet
from apps.runtime.ops.settings import RULES


def _build(stage: StageInput) -> Step:
    rules = RuleSet(stage.settings[RULES])
    apply = rules.apply
    return Step(lambda slot: slot.rewrite(apply), rules)


DATAGUARD_REDACT = OpKind(
    name="dataguard_redact",
    does="applies rules",
    since="0.1.0",
    build=_build,
    settings=(RULES,),
    examples=(
        Example(
            record=b'{"id": 7, "customer": {"email": "ann@example.com", "card": "4111"}}',
            result=b'{"id":7,"customer":{"email":"a**********.com"}}',
            settings={"rules": ["customer.card:drop", "customer.email:mask=1:4:*"]},
        ),
    ),
)
