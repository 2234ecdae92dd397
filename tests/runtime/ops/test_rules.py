"""What each redaction rule leaves behind."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.runtime.ops.records import parse_record, write_record
from apps.runtime.ops.rules import apply_rules, parse_rules


def redacted(record: str, *rules: str) -> str:
    parsed, problems = parse_rules(list(rules))
    assert problems == ()
    value = parse_record(record.encode())
    apply_rules(value, parsed)
    return write_record(value).decode()


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("record", "rule", "left"),
    [
        ('{"a":1,"b":2}', "a:drop", '{"b":2}'),
        ('{"a":{"b":1,"c":2}}', "a.b:drop", '{"a":{"c":2}}'),
        ('{"a":[{"b":1},{"c":2},3,[{"b":4}]]}', "a.b:drop", '{"a":[{},{"c":2},3,[{}]]}'),
        ('{"a":{"b":1}}', "a.b.c:drop", '{"a":{"b":1}}'),
        ('{"b":1}', "a:replace_with=x", '{"b":1}'),
        ('{"a":{"deep":[1]}}', "a:replace_with=x=y:z", '{"a":"x=y:z"}'),
        ('{"a":null}', "a:replace_with=", '{"a":""}'),
        ('{"a":"a@b.c"}', "a:hash", '{"a":"' + sha('"a@b.c"') + '"}'),
        ('{"a":"\\u00e9"}', "a:hash", '{"a":"' + sha('"é"') + '"}'),
        ('{"a":{"y":1.0,"x":[true,null]}}', "a:hash", '{"a":"' + sha('{"x":[true,null],"y":1.0}') + '"}'),
        ('{"a":"4111111111111111"}', "a:mask=0:4:*", '{"a":"************1111"}'),
        ('{"a":"abcdef"}', "a:mask=2:1:#", '{"a":"ab###f"}'),
        ('{"a":"abcdef"}', "a:mask=2:0::", '{"a":"ab::::"}'),
        ('{"a":"abc"}', "a:mask=2:1:*", '{"a":"***"}'),
        ('{"a":""}', "a:mask=0:0:*", '{"a":""}'),
        ('{"a":"日本語"}', "a:mask=1:0:*", '{"a":"日**"}'),
        ('{"a":12345}', "a:mask=1:1:*", '{"a":"1***5"}'),
        ('{"a":null}', "a:mask=0:0:*", '{"a":null}'),
        ('{"a":[1,2]}', "a:mask=0:0:*", '{"a":"*****"}'),
        ('{"a":"abcdef"}', "a:truncate=3", '{"a":"abc"}'),
        ('{"a":"abcdef"}', "a:truncate=0", '{"a":""}'),
        ('{"a":"ab"}', "a:truncate=3", '{"a":"ab"}'),
        ('{"a":1234}', "a:truncate=2", '{"a":"12"}'),
        ('{"a":null}', "a:truncate=2", '{"a":null}'),
        ('{"":1,"a":2}', "a:drop", '{"":1}'),
    ],
)
def test_a_rule_leaves(record: str, rule: str, left: str) -> None:
    assert redacted(record, rule) == left


def test_rules_apply_in_order_each_on_what_the_one_before_left() -> None:
    assert redacted('{"a":"abcdef"}', "a:truncate=2", "a:mask=1:0:*") == '{"a":"a*"}'
    assert redacted('{"a":"abcdef"}', "a:drop", "a:hash") == "{}"


def test_what_no_rule_names_keeps_its_order_and_its_numbers() -> None:
    record = '{ "z": 1.10, "big": 123456789012345678901234567890, "e": 1E+3, "m": -0.0, "a": "x" }'
    left = '{"z":1.10,"big":123456789012345678901234567890,"e":1E+3,"m":-0.0,"a":""}'
    assert redacted(record, "a:truncate=0") == left


def test_every_wrong_rule_is_told_at_once() -> None:
    rules = ["a", ":drop", "a..b:drop", "a:", "a:explode", "a:drop=1", "a:hash=", "a:replace_with", "a:truncate=-1",
             "a:truncate=01", "a:mask=1:2", "a:mask=1:2:", "a:mask=1:2:**", "a:mask=x:2:*", 7, None, "a" * 1025,
             ".".join("a" * 33) + ":drop", "fine:drop"]  # fmt: skip
    parsed, problems = parse_rules(rules)
    assert [item.index for item in problems] == list(range(len(rules) - 1))
    assert [rule.text for rule in parsed] == ["fine:drop"]
    assert all(item.message.endswith(".") for item in problems)


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ("a:drop", "not_a_list"),
        (None, "not_a_list"),
        ({}, "not_a_list"),
        ([], "no_rules"),
        (["a:drop"] * 257, "too_many_rules"),
    ],
)
def test_what_is_no_list_of_rules_is_refused(rules: object, code: str) -> None:
    assert [item.code for item in parse_rules(rules)[1]] == [code]


@given(st.lists(st.text(max_size=30) | st.integers() | st.none(), max_size=10))
@settings(deadline=None)
def test_no_list_breaks_the_reader_of_rules(rules: list[object]) -> None:
    parse_rules(rules)
