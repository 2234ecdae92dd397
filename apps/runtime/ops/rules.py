"""Redaction rules, `field:action`; the actions are `ACTIONS`.

A field is a path of keys with dots between them. A path goes through arrays, element by element; where it
meets anything else that is not an object, or a key that is missing, the rule does nothing. What stands at
its end is taken whole, whatever it is.

Mask and truncate see a string's characters (Unicode code points), of anything else its canonical JSON, and
give a string; null stays null. Rules apply in the order given, each on what the one before left.

Rules that share the beginning of their paths are kept in one tree, so that a record is walked once, however many rules there
are: the time is linear in the record plus what the rules change.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from apps.runtime.characters import hidden_in
from apps.runtime.ops.records import Value, canonical_bytes, text_of

MAX_RULES = 256
MAX_RULE_LENGTH = 1024
MAX_PATH = 32

_COUNT = re.compile(r"0|[1-9][0-9]{0,5}")
_NOT_IN_A_FIELD = re.compile(r"[$*\[\]'\"`\s]")

Replacement: TypeAlias = Callable[[Value], Value]
"""From a value to the one that replaces it."""


@dataclass(frozen=True, slots=True)
class RuleProblem:
    """What is wrong with rule number `index` (-1: with the list). `code` is stable, `message` a sentence."""

    index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: a path, and what replaces the value that stands there (None: key and value are dropped)."""

    text: str
    path: tuple[str, ...]
    replacement: Replacement | None


@dataclass(frozen=True, slots=True)
class Action:
    """What a rule can do.

    `argument` describes what follows the equals sign, None when nothing may. `leaves` is the sentence of the reference (Markdown,
    for a table cell), `example` a whole action, `since` the first version of the agent that knows it. `replacement` makes the
    replacement of a rule from its argument ("" where none is taken), and raises ValueError, with a sentence, for a malformed
    one.
    """

    name: str
    leaves: str
    example: str
    since: str
    replacement: Callable[[str], Replacement | None]
    argument: str | None = None

    @property
    def form(self) -> str:
        """How a rule names it: `name` or `name=ARGUMENT`."""
        return self.name if self.argument is None else f"{self.name}={self.argument}"


def parse_rules(rules: object, *, strict: bool = False) -> tuple[tuple[Rule, ...], tuple[RuleProblem, ...]]:
    """The rules, and every problem with them at once. Never raises.

    With `strict`, as for a configuration that is being written, also the fields that can't mean anything (`field_problem`);
    without, as on a host, what was approved once is read for ever.
    """
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
            good.append(_parse(text, strict))
        except _RuleError as wrong:
            problems.append(RuleProblem(index, wrong.code, wrong.message))
    return tuple(good), tuple(problems)


def action_of(rule: str) -> str:
    """The name of the action of a well-formed rule."""
    return rule.partition(":")[2].partition("=")[0]


def field_problem(field: str) -> str | None:
    """Why `field` would match nothing or something else than its author means; None when it may stand.

    JSONPath, JSON Pointer and shell patterns mean nothing here: `$.a`, `/a`, `a[0]`, `a[*]`, `a['b']` would be keys of these
    very characters, and the rule would redact nothing. Invisible characters make two different fields look the same.
    """
    if field.startswith("/"):
        return "A field is keys with dots between them, such as customer.email; it does not begin with a slash."
    found = _NOT_IN_A_FIELD.search(field)
    if found is not None and not found[0].isspace():
        return f"A field is keys with dots between them; {found[0]} means nothing in it. Arrays are gone through as they are."
    if found is not None or hidden_in(field):
        return "A field holds no white space and no invisible characters."
    return None


class _Node:
    """A key on the way of some rules: `below` are the keys that follow, `ends` the rules whose path ends here, by number."""

    __slots__ = ("below", "ends")

    def __init__(self) -> None:
        self.below: dict[str, _Node] = {}
        self.ends: list[tuple[int, Replacement | None]] = []


class RuleSet:
    """The rules of one stage, ready to apply. `hits[n]` counts the values that rule `n` was applied to.

    Not for use by two threads at once.
    """

    __slots__ = ("_nodes", "hits", "rules")

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self.hits = [0] * len(self.rules)
        root = _Node()
        for number, rule in enumerate(self.rules):
            self._add(root, number, rule)
        self._nodes = root.below

    def _add(self, node: _Node, number: int, rule: Rule) -> None:
        """Put a rule into the tree.

        A rule leaves a string, null or nothing where its path ends, so a later one that reaches below that never matches. One
        that reaches below and came earlier is applied first: what is below is walked before what stands at the node itself.
        """
        for key in rule.path:
            if node.ends:
                return
            node = node.below.setdefault(key, _Node())
        node.ends.append((number, rule.replacement))

    def apply(self, record: dict[str, Value]) -> None:
        """Change `record` in place, as if the rules were applied one after another."""
        _walk(record, self._nodes, self.hits)


def _walk(value: Value, nodes: dict[str, _Node], hits: list[int]) -> None:
    if isinstance(value, dict):
        for key in nodes if len(nodes) <= len(value) else [key for key in value if key in nodes]:
            if key in value:
                node = nodes[key]
                if node.below:
                    _walk(value[key], node.below, hits)
                for number, replacement in node.ends:
                    hits[number] += 1
                    if replacement is None:
                        del value[key]
                        break
                    value[key] = replacement(value[key])
    elif isinstance(value, list):
        for item in value:
            _walk(item, nodes, hits)


class _RuleError(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def _parse(text: object, strict: bool) -> Rule:
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
    problem = field_problem(field) if strict else None
    if problem is not None:
        raise _RuleError("bad_field", problem)
    name, equals, argument = action.partition("=")
    kind = ACTIONS.get(name)
    if kind is None:
        *forms, last = (action.form for action in ACTIONS.values())
        raise _RuleError("unknown_action", f"An action is {', '.join(forms)} or {last}.")
    if kind.argument is None and equals:
        raise _RuleError("bad_argument", f"{name} takes no argument.")
    if kind.argument is not None and not equals:
        raise _RuleError("bad_argument", f"{name} needs an argument after '='.")
    try:
        return Rule(text, path, kind.replacement(argument))
    except ValueError as wrong:
        raise _RuleError("bad_argument", str(wrong)) from None


def _dropped(argument: str) -> None:
    return None


def _replaced(argument: str) -> Replacement:
    return lambda _: argument


def _hashed(argument: str) -> Replacement:
    return lambda value: hashlib.sha256(canonical_bytes(value)).hexdigest()


def _truncated(argument: str) -> Replacement:
    if not _COUNT.fullmatch(argument):
        raise ValueError("truncate takes the number of characters to keep.")
    keep = int(argument)
    return lambda value: None if value is None else text_of(value)[:keep]


def _masked(argument: str) -> Replacement:
    parts = argument.split(":", 2)
    if len(parts) != 3 or not all(map(_COUNT.fullmatch, parts[:2])) or len(parts[2]) != 1:
        raise ValueError("mask takes P:S:C: characters kept in front and behind, and one to put between.")
    front, back, char = int(parts[0]), int(parts[1]), parts[2]

    def mask(value: Value) -> Value:
        if value is None:
            return None
        text = text_of(value)
        hidden = len(text) - front - back
        if hidden <= 0:
            return char * len(text)
        return text[:front] + char * hidden + text[len(text) - back :]

    return mask


ACTIONS: dict[str, Action] = {
    action.name: action
    for action in (
        Action("drop", "nothing: key and value are gone", "drop", "0.1.0", _dropped),
        Action(
            "replace_with",
            "the string V, which may be empty and hold any character",
            "replace_with=v",
            "0.1.0",
            _replaced,
            "V",
        ),
        Action(
            "hash",
            "64 hex digits: SHA-256 of the value's canonical JSON (keys sorted by code point, no white space, UTF-8, numbers as "
            'written). Of the string `a@b.c` that is the SHA-256 of the seven bytes `"a@b.c"`',
            "hash",
            "0.1.0",
            _hashed,
        ),
        Action(
            "mask",
            "the first P and last S characters, C for each between. A value of at most P + S characters is masked whole",
            "mask=1:0:*",
            "0.1.0",
            _masked,
            "P:S:C",
        ),
        Action("truncate", "the first N characters", "truncate=1", "0.1.0", _truncated, "N"),
    )
}
