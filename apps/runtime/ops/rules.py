"""Redaction rules: field:drop, field:replace_with=V, field:hash, field:mask=P:S:C, field:truncate=N.

A field is a path of keys with dots between them. A path goes through arrays, element by element; where it
meets anything else that is not an object, or a key that is missing, the rule does nothing. What stands at
its end is taken whole, whatever it is:

- `drop` removes the member, key and all.
- `replace_with=V` puts the string V there (V may be empty and hold any character).
- `hash` puts the hex SHA-256 of the value's canonical JSON there (keys sorted, no white space, UTF-8,
  numbers as written): of the string a@b.c that is the hash of the seven bytes "a@b.c" with its quotes.
- `mask=P:S:C` keeps the first P and the last S characters and puts C for each one between. A value of at
  most P + S characters is masked whole: nothing short gives itself away.
- `truncate=N` keeps the first N characters.

Mask and truncate see a string's characters (Unicode code points), of anything else its canonical JSON, and
give a string; null stays null. Rules apply in the order given, each on what the one before left.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apps.runtime.ops.records import Value, canonical_bytes, text_of

MAX_RULES = 256
MAX_RULE_LENGTH = 1024
MAX_PATH = 32

_COUNT = re.compile(r"0|[1-9][0-9]{0,5}")


@dataclass(frozen=True, slots=True)
class RuleProblem:
    """What is wrong with rule number `index` (-1: with the list). `code` is stable, `message` a sentence."""

    index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: a path and what becomes of what stands there (None: it is dropped)."""

    text: str
    path: tuple[str, ...]
    change: Callable[[Value], Value] | None


def parse_rules(rules: object) -> tuple[tuple[Rule, ...], tuple[RuleProblem, ...]]:
    """The rules, and every problem with them at once. Never raises."""
    if not isinstance(rules, Sequence) or isinstance(rules, str | bytes):
        return (), (RuleProblem(-1, "not_a_list", "Rules are a list of strings."),)
    if not rules:
        return (), (RuleProblem(-1, "no_rules", "There is no rule in the list."),)
    if len(rules) > MAX_RULES:
        return (), (RuleProblem(-1, "too_many_rules", f"At most {MAX_RULES} rules are allowed."),)
    good: list[Rule] = []
    problems: list[RuleProblem] = []
    for index, text in enumerate(rules):
        try:
            good.append(_parse(text))
        except _RuleError as wrong:
            problems.append(RuleProblem(index, wrong.code, wrong.message))
    return tuple(good), tuple(problems)


def apply_rules(record: dict[str, Value], rules: Sequence[Rule]) -> None:
    """Change `record` in place, rule by rule."""
    for rule in rules:
        _apply(record, rule.path, 0, rule.change)


class _RuleError(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def _parse(text: object) -> Rule:
    if not isinstance(text, str):
        raise _RuleError("not_a_string", "A rule is a string.")
    if len(text) > MAX_RULE_LENGTH:
        raise _RuleError("rule_too_long", f"A rule has at most {MAX_RULE_LENGTH} characters.")
    field, colon, action = text.partition(":")
    if not colon:
        raise _RuleError("no_action", "A rule is field:action, such as customer.email:hash.")
    path = tuple(field.split("."))
    if not all(path):
        raise _RuleError("bad_field", "A field is keys with single dots between them.")
    if len(path) > MAX_PATH:
        raise _RuleError("bad_field", f"A field reaches at most {MAX_PATH} keys deep.")
    name, equals, argument = action.partition("=")
    if name in ("drop", "hash"):
        if equals:
            raise _RuleError("bad_argument", f"{name} takes no argument.")
        return Rule(text, path, None if name == "drop" else _hashed)
    if name not in ("replace_with", "mask", "truncate"):
        raise _RuleError("unknown_action", "An action is drop, replace_with=V, hash, mask=P:S:C or truncate=N.")
    if not equals:
        raise _RuleError("bad_argument", f"{name} needs an argument after '='.")
    if name == "replace_with":
        return Rule(text, path, lambda _: argument)
    if name == "truncate":
        if not _COUNT.fullmatch(argument):
            raise _RuleError("bad_argument", "truncate takes the number of characters to keep.")
        return Rule(text, path, _truncated(int(argument)))
    parts = argument.split(":", 2)
    if len(parts) != 3 or not all(map(_COUNT.fullmatch, parts[:2])) or len(parts[2]) != 1:
        raise _RuleError(
            "bad_argument", "mask takes P:S:C: characters kept in front and behind, and one to put between."
        )
    return Rule(text, path, _masked(int(parts[0]), int(parts[1]), parts[2]))


def _hashed(value: Value) -> Value:
    return hashlib.sha256(canonical_bytes(value)).hexdigest()


def _truncated(keep: int) -> Callable[[Value], Value]:
    return lambda value: None if value is None else text_of(value)[:keep]


def _masked(front: int, back: int, char: str) -> Callable[[Value], Value]:
    def change(value: Value) -> Value:
        if value is None:
            return None
        text = text_of(value)
        hidden = len(text) - front - back
        if hidden <= 0:
            return char * len(text)
        return text[:front] + char * hidden + text[len(text) - back :]

    return change


def _apply(value: Value, path: tuple[str, ...], at: int, change: Callable[[Value], Value] | None) -> None:
    last = len(path) - 1
    while isinstance(value, dict):
        key = path[at]
        if key not in value:
            return
        if at < last:
            value = value[key]
            at += 1
        elif change is None:
            del value[key]
            return
        else:
            value[key] = change(value[key])
            return
    if isinstance(value, list):
        for item in value:
            _apply(item, path, at, change)
