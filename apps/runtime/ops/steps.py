"""The ops, ready to run: each takes a slot, and changes it, leaves it, or refuses it; effects go out by a port."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from apps.runtime.ops.effects import Effects
from apps.runtime.ops.names import KINDS, Op, command_of
from apps.runtime.ops.records import Refused, Value, parse_record, write_record
from apps.runtime.ops.rules import Rule, apply_rules, parse_rules
from apps.runtime.ops.schema import Schema, parse_schema, pointer_of


class Slot:
    """A record on the ring.

    It is read as JSON when the first op asks, and written again only if one changed it.
    """

    __slots__ = ("_changed", "_data", "_value")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._value: dict[str, Value] | None = None
        self._changed = False

    def value(self) -> dict[str, Value]:
        """The record as an object. Raises Refused when it is none."""
        if self._value is None:
            self._value = parse_record(self._data)
        return self._value

    def redact(self, rules: tuple[Rule, ...]) -> None:
        """Apply `rules`. Raises Refused when the record is no JSON object."""
        apply_rules(self.value(), rules)
        self._changed = True

    def copy(self) -> Slot:
        """Another record with the same bytes."""
        return Slot(self.data())

    def data(self) -> bytes:
        """The record's bytes as it now stands; the very bytes that came in when no op rewrote it."""
        if self._changed:
            self._data = write_record(self.value())
            self._changed = False
        return self._data


Step = Callable[[Slot], None]


@dataclass(frozen=True, slots=True)
class SettingProblem:
    """What is wrong with a stage's settings; `pointer` is relative to them."""

    pointer: str
    code: str
    message: str


def check_settings(op_name: str, settings: object) -> tuple[SettingProblem, ...]:
    """Every problem with the settings of a stage whose op is `op_name`. Never raises."""
    return _read(op_name, settings)[2]


def build_step(
    op: Op, settings: Mapping[str, object], effects: Effects | None
) -> tuple[Step | None, tuple[SettingProblem, ...]]:
    """The op with its settings, ready to run, or every problem with them.

    An op that acts on the outside world goes through `effects`; without any it is the problem `effects_missing`.
    """
    rules, schema, problems = _read(op.name, settings)
    if op.capability is None:
        return (None, problems) if problems else (_guard(rules, schema), ())
    if effects is None:
        message = f"The op {op.name} acts on the outside world, which nothing here does for it."
        problems = (*problems, SettingProblem("", "effects_missing", message))
    if problems or effects is None:
        return None, problems
    return _effect(op, effects), ()


def _read(op_name: str, settings: object) -> tuple[tuple[Rule, ...], Schema | None, tuple[SettingProblem, ...]]:
    kind = KINDS[op_name]
    rules: tuple[Rule, ...] = ()
    schema: Schema | None = None
    problems: list[SettingProblem] = []
    if not isinstance(settings, Mapping):
        return rules, schema, (SettingProblem("", "wrong_type", "The settings of a stage are an object."),)
    for key in settings:
        if key not in ("rules", "schema"):
            problems.append(SettingProblem(pointer_of("", key), "unknown_key", "A stage takes rules and schema."))
    for key, needed in (("rules", kind.needs_rules), ("schema", kind.needs_schema)):
        if needed and key not in settings:
            problems.append(SettingProblem("", f"{key}_missing", f"The op {op_name} needs {key}."))
        elif not needed and key in settings:
            problems.append(SettingProblem(f"/{key}", f"{key}_not_taken", f"The op {op_name} takes no {key}."))
    if "rules" in settings:
        rules, wrong_rules = parse_rules(settings["rules"])
        for rule in wrong_rules:
            pointer = "/rules" if rule.index < 0 else f"/rules/{rule.index}"
            problems.append(SettingProblem(pointer, rule.code, rule.message))
    if "schema" in settings:
        schema, wrong_schema = parse_schema(settings["schema"])
        problems += [SettingProblem("/schema" + item.pointer, item.code, item.message) for item in wrong_schema]
    return rules, schema, tuple(problems)


def _effect(op: Op, effects: Effects) -> Step:
    if op.name == "http_post":
        url = op.argument or ""
        return lambda slot: effects.http_post(url, slot.data())
    argv = command_of(op.argument or "")
    return lambda slot: effects.exec(argv, slot.data())


def _guard(rules: tuple[Rule, ...], schema: Schema | None) -> Step:
    if schema is None:
        return (lambda slot: slot.redact(rules)) if rules else (lambda slot: None)
    violations = schema.violations

    def check(slot: Slot) -> None:
        found = violations(slot.value())
        if found:
            raise Refused("schema_violation", "; ".join(item.message for item in found))

    def check_and_redact(slot: Slot) -> None:
        check(slot)
        slot.redact(rules)

    return check_and_redact if rules else check
