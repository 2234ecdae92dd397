"""A plan run over records."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.runtime.interpreter import Interpreter, SettingsError
from apps.runtime.spec import Plan
from tests.runtime.specs import plan_of

GUARD = plan_of(("check", "dataguard_check", []), ("redact", "dataguard_redact", [0]))
SETTINGS: dict[str, dict[str, object]] = {
    "check": {"schema": {"type": "object", "required": ["id"]}},
    "redact": {"rules": ["email:hash", "note:drop"]},
}


def test_identity_forwards_bytes_whatever_they_are() -> None:
    runner = Interpreter(plan_of(("a", "identity", [])), {})
    for record in (b"", b"\xff\x00", b"not json", b'{ "a" : 1 }'):
        outcome = runner.process(record)
        assert (outcome.emitted, outcome.refused, outcome.passed) == (record, None, ("a",))


def test_a_check_forwards_the_very_bytes_it_was_given() -> None:
    runner = Interpreter(plan_of(("a", "dataguard_check", [])), {"a": {"schema": True}})
    assert runner.process(b'{ "a" : "\\u00e9" }').emitted == b'{ "a" : "\\u00e9" }'


def test_a_refused_record_goes_no_further_and_is_counted_where_it_was_refused() -> None:
    runner = Interpreter(GUARD, SETTINGS)
    outcomes = list(runner.run([b'{"id":1,"note":"x"}', b'{"note":"x"}', b"[]"]))
    assert [item.emitted for item in outcomes] == [b'{"id":1}', None, None]
    assert [(item.refused.stage, item.refused.code) for item in outcomes if item.refused] == [
        ("check", "schema_violation"),
        ("check", "not_an_object"),
    ]
    assert [item.passed for item in outcomes] == [("check", "redact"), (), ()]
    assert runner.metrics()["stages"] == {
        "check": {"received": 3, "forwarded": 1, "refused": 2, "codes": {"schema_violation": 1, "not_an_object": 1}},
        "redact": {"received": 1, "forwarded": 1, "refused": 0, "codes": {}},
    }


def test_a_fused_stage_checks_what_came_in_and_then_redacts() -> None:
    plan = plan_of(("guard", "dataguard_fused", []))
    runner = Interpreter(plan, {"guard": {"schema": {"required": ["a"]}, "rules": ["a:drop"]}})
    assert runner.process(b'{"a":1}').emitted == b"{}"
    assert runner.process(b"{}").refused is not None


def test_branches_share_the_slot_so_nothing_removed_comes_back() -> None:
    plan = plan_of(
        ("first", "dataguard_redact", []), ("left", "dataguard_redact", [0]), ("right", "dataguard_redact", [0]),
        ("last", "dataguard_check", [1, 2]),
    )  # fmt: skip
    runner = Interpreter(
        plan,
        {
            "first": {"rules": ["a:drop"]},
            "left": {"rules": ["b:drop"]},
            "right": {"rules": ["c:truncate=1"]},
            "last": {"schema": {"properties": {"c": {"maxLength": 1}, "d": True}, "additionalProperties": False}},
        },
    )
    assert runner.process(b'{"a":1,"b":2,"c":"xyz","d":4}').emitted == b'{"c":"x","d":4}'


def _problems(plan: Plan, stages: Any) -> list[tuple[str, str]]:
    with pytest.raises(SettingsError) as error:
        Interpreter(plan, stages)
    return [(item.pointer, item.code) for item in error.value.problems]


def test_settings_that_do_not_fit_the_plan_are_all_reported_at_once() -> None:
    stages = {"check": {"rules": ["a:drop"]}, "redact": {"rules": ["a", "b:drop", "c:x"], "more": 1}, "gone": {}}
    assert _problems(GUARD, stages) == [
        ("/gone", "unknown_stage"),
        ("/check/rules", "rules_not_taken"),
        ("/check", "schema_missing"),
        ("/redact/more", "unknown_key"),
        ("/redact/rules/0", "no_action"),
        ("/redact/rules/2", "unknown_action"),
    ]
    assert _problems(GUARD, {"check": 1, "redact": {"rules": ["a:drop"]}}) == [("/check", "wrong_type")]


def test_a_plan_with_an_op_that_is_not_here_is_refused() -> None:
    value = plan_of(("a", "identity", [])).as_dict()
    plan = Plan.from_dict({**value, "stages": [{**value["stages"][0], "op": "teleport"}]})  # type: ignore[index]
    assert _problems(plan, {}) == [("/a", "unknown_op")]


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b'{"id":1,"email":"x"}', b'{"id":1.50}', b"{}"]), max_size=8))
@settings(deadline=None)
def test_the_same_plan_and_records_give_the_same_bytes_every_time(records: list[bytes]) -> None:
    one, two = Interpreter(GUARD, SETTINGS), Interpreter(Plan.from_dict(GUARD.as_dict()), SETTINGS)
    assert list(one.run(records)) == list(two.run(records)) == [two.process(record) for record in records]
    assert all((item.emitted is None) is (item.refused is not None) for item in one.run(records))
