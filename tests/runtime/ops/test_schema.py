"""The closed subset of JSON Schema, held against a validator that knows all of it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.runtime.ops.records import parse_record, plain
from apps.runtime.ops.schema import KEYWORDS, parse_schema
from tests.runtime.ops.test_records import values

small = st.integers(0, 3)
simple = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null"])
        | st.just(["string", "null"]),
        "required": st.lists(st.sampled_from("ab"), unique=True),
        "enum": st.lists(values, min_size=1, max_size=3),
        "const": values,
        "minimum": st.integers(-3, 3) | st.floats(-3, 3),
        "maximum": st.integers(-3, 3),
        "minLength": small,
        "maxLength": small,
        "minItems": small,
        "maxItems": small,
    },
)
schemas = st.recursive(
    simple | st.booleans(),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            "additionalProperties": inner,
            "items": inner,
            "type": st.just("object"),
        },
    ),
    max_leaves=6,
)
records = st.dictionaries(st.sampled_from("abcd"), values, max_size=4)


@given(schemas, records)
@settings(max_examples=400, deadline=None)
def test_it_agrees_with_a_full_validator_on_its_subset(schema: object, record: dict[str, object]) -> None:
    parsed, problems = parse_schema(schema)
    assert problems == ()
    assert parsed is not None
    ours = parsed.violations(parse_record(json.dumps(record).encode())) == ()
    validator = jsonschema.Draft202012Validator(schema)  # type: ignore[arg-type]
    assert ours is validator.is_valid(record)


@pytest.mark.parametrize(
    ("schema", "pointer", "code"),
    [
        (7, "", "wrong_type"),
        ({"pattern": "(a+)+"}, "/pattern", "unknown_keyword"),
        ({"$ref": "#"}, "/$ref", "unknown_keyword"),
        ({"type": "text"}, "/type", "bad_type"),
        ({"type": []}, "/type", "bad_type"),
        ({"type": [["object"]]}, "/type", "bad_type"),
        ({"type": ["null", "null"]}, "/type", "bad_type"),
        ({"required": "a"}, "/required", "wrong_type"),
        ({"required": [1]}, "/required", "wrong_type"),
        ({"required": ["a", "a"]}, "/required", "duplicate"),
        ({"properties": []}, "/properties", "wrong_type"),
        ({"properties": {"a/b": 1}}, "/properties/a~1b", "wrong_type"),
        ({"additionalProperties": None}, "/additionalProperties", "wrong_type"),
        ({"items": [{}]}, "/items", "wrong_type"),
        ({"enum": []}, "/enum", "wrong_type"),
        ({"enum": [0] * 257}, "/enum", "wrong_type"),
        ({"const": float("nan")}, "/const", "wrong_type"),
        ({"minimum": "1"}, "/minimum", "wrong_type"),
        ({"minimum": True}, "/minimum", "wrong_type"),
        ({"maximum": float("inf")}, "/maximum", "wrong_type"),
        ({"minLength": -1}, "/minLength", "wrong_type"),
        ({"maxLength": 1.5}, "/maxLength", "wrong_type"),
        ({"minItems": True}, "/minItems", "wrong_type"),
        ({"title": 1}, "/title", "wrong_type"),
    ],
    ids=str,
)
def test_a_schema_outside_the_subset_is_refused_where_it_leaves_it(schema: object, pointer: str, code: str) -> None:
    parsed, problems = parse_schema(schema)
    assert parsed is None
    assert [(item.pointer, item.code) for item in problems] == [(pointer, code)]


def test_every_problem_of_a_schema_is_reported_at_once() -> None:
    schema = {"type": "x", "pattern": "y", "properties": {"a": {"enum": 1}, "b": {"items": 2}}}
    pointers = [item.pointer for item in parse_schema(schema)[1]]
    assert sorted(pointers) == ["/pattern", "/properties/a/enum", "/properties/b/items", "/type"]


def test_a_schema_too_deep_to_follow_is_refused() -> None:
    schema: dict[str, object] = {}
    for _ in range(40):
        schema = {"items": schema}
    assert [item.code for item in parse_schema(schema)[1]] == ["too_deep"]


def test_violations_name_places_and_never_values() -> None:
    schema = {
        "type": "object",
        "required": ["id", "total"],
        "properties": {"email": {"maxLength": 3}, "tags": {"items": {"enum": ["x"]}}},
        "additionalProperties": False,
    }
    parsed, _ = parse_schema(schema)
    assert parsed is not None
    found = parsed.violations(plain({"email": "SECRET", "tags": ["x", "SECRET"], "s\nx": "SECRET"}))
    assert [(item.pointer, item.keyword) for item in found] == [
        ("/id", "required"),
        ("/total", "required"),
        ("/email", "maxLength"),
        ("/tags/1", "enum"),
        ("/s\nx", "false"),
    ]
    assert all("SECRET" not in item.message and "\n" not in item.message for item in found)


def test_at_most_a_handful_of_violations_are_reported() -> None:
    parsed, _ = parse_schema({"additionalProperties": False})
    assert parsed is not None
    assert len(parsed.violations(plain({str(n): n for n in range(1000)}))) == 8


def test_every_keyword_is_in_the_reference() -> None:
    text = (Path(__file__).parents[3] / "docs/spec.md").read_text()
    assert all(f"`{keyword}`" in text for keyword in KEYWORDS)
