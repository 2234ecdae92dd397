"""The settings that more than one op takes."""

from __future__ import annotations

from apps.runtime.ops.kind import Need, Setting, SettingProblem
from apps.runtime.ops.rules import ACTIONS, MAX_RULE_LENGTH, MAX_RULES, Rule, action_of, parse_rules
from apps.runtime.ops.schema import Schema, parse_schema


def _read_rules(value: object, strict: bool) -> tuple[tuple[Rule, ...], list[SettingProblem]]:
    rules, wrong = parse_rules(value, strict=strict)
    return rules, [SettingProblem("" if p.index < 0 else f"/{p.index}", p.code, p.message) for p in wrong]


def _action_needs(value: object) -> list[Need]:
    names = {action_of(rule) for rule in value if isinstance(rule, str)} if isinstance(value, list) else set()
    return [Need(f"the action {name} of a rule", ACTIONS[name].since) for name in sorted(names & ACTIONS.keys())]


def _read_schema(value: object, strict: bool) -> tuple[Schema, list[SettingProblem]]:
    schema, wrong = parse_schema(value)
    return schema or Schema(never=True), [SettingProblem(p.pointer, p.code, p.message) for p in wrong]


RULES = Setting(
    "rules",
    {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_RULES,
        "items": {"type": "string", "maxLength": MAX_RULE_LENGTH},
    },
    _read_rules,
    _action_needs,
)
SCHEMA = Setting("schema", {"type": ["object", "boolean"]}, _read_schema)
