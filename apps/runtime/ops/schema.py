"""A closed subset of JSON Schema 2020-12 for `dataguard_check`, looking at each value once.

Taken: `type`, `required`, `properties`, `additionalProperties`, `items`, `enum`, `const`, `minimum`,
`maximum`, `minLength`, `maxLength`, `minItems`, `maxItems`, the schemas `true` and `false`, and the
comments `$schema`, `title`, `description`. Anything else is refused when the config is made: a check that
is silently not made is worse than none. There is no `pattern` and no `$ref`, so no schema can make a host
spend more than linear time on a record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from apps.runtime.ops.records import Number, Value, plain, same

MAX_DEPTH = 32
MAX_ENUM = 256
MAX_VIOLATIONS = 8

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_COMMENTS = ("$schema", "title", "description")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
_BOUNDS = ("minimum", "maximum")
KEYWORDS = (
    "type", "required", "properties", "additionalProperties", "items", "enum", "const",
    *_BOUNDS, *_COUNTS, *_COMMENTS,
)  # fmt: skip


_Report = Callable[[str, str, str], None]
#: A place in a record: the place above it and the step from there, None at the top. Made into a pointer when it is reported.
_Place = tuple["_Place", str | int] | None


@dataclass(frozen=True, slots=True)
class SchemaProblem:
    """What is wrong at `pointer` (RFC 6901, within the schema)."""

    pointer: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Violation:
    """Where a record misses the schema: a pointer into the record, the keyword, a sentence without values."""

    pointer: str
    keyword: str
    message: str


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema that was understood. Everything None or empty: anything passes. `never`: nothing does."""

    never: bool = False
    types: tuple[str, ...] | None = None
    required: tuple[str, ...] = ()
    properties: Mapping[str, Schema] = field(default_factory=dict)
    additional: Schema | None = None
    items: Schema | None = None
    enum: tuple[Value, ...] | None = None
    minimum: Decimal | None = None
    maximum: Decimal | None = None
    min_length: int | None = None
    max_length: int | None = None
    min_items: int | None = None
    max_items: int | None = None

    def violations(self, record: Value) -> tuple[Violation, ...]:
        """Where `record` misses the schema, the first few in the order of the record; none when it holds."""
        found: list[Violation] = []
        _check(self, record, None, found)
        return tuple(found)


def parse_schema(schema: object) -> tuple[Schema | None, tuple[SchemaProblem, ...]]:
    """The schema, and every problem with it at once; None when there is one. Never raises."""
    problems: list[SchemaProblem] = []
    parsed = _parse(schema, "", 0, problems)
    return (None if problems else parsed), tuple(problems)


def pointer_of(base: str, key: str | int) -> str:
    """The JSON pointer one step below `base`."""
    return f"{base}/{str(key).replace('~', '~0').replace('/', '~1')}"


def _parse(schema: object, at: str, depth: int, problems: list[SchemaProblem]) -> Schema:
    def wrong(key: str, code: str, message: str) -> None:
        problems.append(SchemaProblem(pointer_of(at, key) if key else at, code, message))

    if isinstance(schema, bool):
        return Schema(never=not schema)
    if not isinstance(schema, Mapping):
        wrong("", "wrong_type", "A schema is an object, true or false.")
        return Schema()
    if depth >= MAX_DEPTH:
        wrong("", "too_deep", f"A schema is nested at most {MAX_DEPTH} deep.")
        return Schema()
    for key in schema:
        if key not in KEYWORDS:
            wrong(
                str(key),
                "unknown_keyword",
                "This keyword is not checked here. Known: " + ", ".join(KEYWORDS) + ".",
            )
    for key in _COMMENTS:
        if key in schema and not isinstance(schema[key], str):
            wrong(key, "wrong_type", f"{key} is a string.")
    counts = {key: _count(schema, key, wrong) for key in _COUNTS}
    bounds = {key: _bound(schema, key, wrong) for key in _BOUNDS}
    properties: dict[str, Schema] = {}
    if "properties" in schema:
        named = schema["properties"]
        if isinstance(named, Mapping):
            below = pointer_of(at, "properties")
            for key, item in named.items():
                properties[str(key)] = _parse(item, pointer_of(below, key), depth + 1, problems)
        else:
            wrong("properties", "wrong_type", "properties is an object of schemas.")
    inner: dict[str, Schema | None] = {"additionalProperties": None, "items": None}
    for key in inner:
        if key in schema:
            inner[key] = _parse(schema[key], pointer_of(at, key), depth + 1, problems)
    return Schema(
        types=_types(schema, wrong),
        required=_required(schema, wrong),
        properties=properties,
        additional=inner["additionalProperties"],
        items=inner["items"],
        enum=_enum(schema, wrong),
        minimum=bounds["minimum"],
        maximum=bounds["maximum"],
        min_length=counts["minLength"],
        max_length=counts["maxLength"],
        min_items=counts["minItems"],
        max_items=counts["maxItems"],
    )


def _types(schema: Mapping[str, object], wrong: _Report) -> tuple[str, ...] | None:
    if "type" not in schema:
        return None
    named = schema["type"]
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n in TYPES for n in names):
        wrong("type", "bad_type", "type is one of " + ", ".join(TYPES) + ", or a list of them.")
        return None
    texts = tuple(name for name in names if isinstance(name, str))
    if len(set(texts)) != len(names):
        wrong("type", "bad_type", "type names each type once.")
        return None
    return texts


def _required(schema: Mapping[str, object], wrong: _Report) -> tuple[str, ...]:
    names = schema.get("required", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        wrong("required", "wrong_type", "required is a list of strings.")
        return ()
    if len(set(names)) != len(names):
        wrong("required", "duplicate", "required names each key once.")
    return tuple(names)


def _enum(schema: Mapping[str, object], wrong: _Report) -> tuple[Value, ...] | None:
    choices: tuple[Value, ...] | None = None
    if "enum" in schema:
        listed = schema["enum"]
        if not isinstance(listed, list) or not 0 < len(listed) <= MAX_ENUM:
            wrong("enum", "wrong_type", f"enum is a list of 1 to {MAX_ENUM} values.")
        else:
            choices = _values("enum", listed, wrong)
    if "const" in schema:
        fixed = _values("const", [schema["const"]], wrong) or ()
        choices = fixed if choices is None else tuple(v for v in choices if any(same(v, item) for item in fixed))
    return choices


def _values(key: str, listed: list[object], wrong: _Report) -> tuple[Value, ...] | None:
    try:
        return tuple(plain(item) for item in listed)
    except (ValueError, RecursionError):
        wrong(key, "wrong_type", f"{key} holds what is not JSON.")
        return None


def _count(schema: Mapping[str, object], key: str, wrong: _Report) -> int | None:
    if key not in schema:
        return None
    count = schema[key]
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= 2**31:
        wrong(key, "wrong_type", f"{key} is a whole number, not below 0.")
        return None
    return count


def _bound(schema: Mapping[str, object], key: str, wrong: _Report) -> Decimal | None:
    if key not in schema:
        return None
    bound = schema[key]
    try:
        number = plain(bound)
    except (ValueError, RecursionError):
        number = None
    if not isinstance(number, Number):
        wrong(key, "wrong_type", f"{key} is a number.")
        return None
    return number.value()


_NAMES: Mapping[type, tuple[str, ...]] = {
    str: ("string",), dict: ("object",), list: ("array",), bool: ("boolean",), type(None): ("null",),
}  # fmt: skip


def _names_of(value: Number) -> tuple[str, ...]:
    if value.text.isdigit():
        return ("integer", "number")
    exact = value.value()
    whole = exact is not None and exact == exact.to_integral_value()
    return ("integer", "number") if whole else ("number",)


def _shown(pointer: str) -> str:
    # Keys of a record are text from outside, on their way to a log.
    text = pointer if len(pointer) <= 120 else pointer[:117] + "..."
    return "".join(char if " " <= char <= "~" else "?" for char in text) or "the record"


def _report(found: list[Violation], at: _Place, keyword: str, message: str) -> None:
    if len(found) < MAX_VIOLATIONS:
        steps: list[str | int] = []
        while at is not None:
            at, step = at
            steps.append(step)
        pointer = ""
        for step in reversed(steps):
            pointer = pointer_of(pointer, step)
        found.append(Violation(pointer, keyword, f"{_shown(pointer)} {message}"))


def _check(schema: Schema, value: Value, at: _Place, found: list[Violation]) -> None:
    if len(found) >= MAX_VIOLATIONS:
        return
    if schema.never:
        _report(found, at, "false", "is not allowed")
        return
    if schema.types is not None:
        names = _names_of(value) if isinstance(value, Number) else _NAMES[type(value)]
        if names[0] not in schema.types and names[-1] not in schema.types:
            _report(found, at, "type", "is not of type " + " or ".join(schema.types))
            return
    if schema.enum is not None and not any(same(value, choice) for choice in schema.enum):
        _report(found, at, "enum", "is not one of the allowed values")
    if isinstance(value, dict):
        for key in schema.required:
            if key not in value:
                _report(found, (at, key), "required", "is missing")
        if schema.properties or schema.additional is not None:
            for key, item in value.items():
                below = schema.properties.get(key, schema.additional)
                if below is not None:
                    _check(below, item, (at, key), found)
    elif isinstance(value, str):
        if schema.min_length is not None and len(value) < schema.min_length:
            _report(found, at, "minLength", f"has fewer than {schema.min_length} characters")
        if schema.max_length is not None and len(value) > schema.max_length:
            _report(found, at, "maxLength", f"has more than {schema.max_length} characters")
    elif isinstance(value, Number):
        _check_number(schema, value, at, found)
    elif isinstance(value, list):
        if schema.min_items is not None and len(value) < schema.min_items:
            _report(found, at, "minItems", f"has fewer than {schema.min_items} items")
        if schema.max_items is not None and len(value) > schema.max_items:
            _report(found, at, "maxItems", f"has more than {schema.max_items} items")
        if schema.items is not None:
            for number, item in enumerate(value):
                _check(schema.items, item, (at, number), found)


def _check_number(schema: Schema, number: Number, at: _Place, found: list[Violation]) -> None:
    if schema.minimum is None and schema.maximum is None:
        return
    exact = int(number.text) if number.text.isdigit() and len(number.text) < 19 else number.value()
    if schema.minimum is not None and (exact is None or exact < schema.minimum):
        _report(found, at, "minimum", "is below the minimum")
    if schema.maximum is not None and (exact is None or exact > schema.maximum):
        _report(found, at, "maximum", "is above the maximum")
