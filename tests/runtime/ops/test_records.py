"""Records go in and out without any change that was not asked for."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.runtime.ops.records import Refused, parse_record, plain, same, write_record

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=5), values, max_size=5))
@settings(deadline=None)
def test_a_record_comes_out_as_compact_json_with_the_same_values_in_the_same_order(record: dict[str, object]) -> None:
    text = json.dumps(record)
    out = write_record(parse_record(text.encode()))
    assert json.loads(out) == record
    assert list(json.loads(out)) == list(record)
    assert out.decode() == json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    assert write_record(parse_record(out)) == out


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"{} x", "not_json"),
        (b'{"a":NaN}', "not_json"),
        (b'{"a":-Infinity}', "not_json"),
        (b'{"a":"\xff"}', "not_json"),
        (b'\xef\xbb\xbf{"a":1}', "not_json"),
        (b'{"a":01}', "not_json"),
        (b'{"a":"\x00"}', "not_json"),
        (b"[1]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"a":1,"a":2}', "duplicate_key"),
        (b'{"x":{"a":1,"\\u0061":2}}', "duplicate_key"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "too_deep"),
        (b"[" * 200_000, "too_deep"),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "too_deep"),
    ],
)
def test_what_is_no_record_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_record(data)
    assert refused.value.code == code


def test_sixty_four_levels_are_fine() -> None:
    data = b'{"a":' * 64 + b"1" + b"}" * 64
    assert write_record(parse_record(data)) == data


def test_a_lone_surrogate_survives_although_utf_8_has_no_place_for_it() -> None:
    data = b'{"a":"\\ud800\\u00e9"}'
    assert json.loads(write_record(parse_record(data))) == json.loads(data)


@pytest.mark.parametrize("data", [b'{"a":1e999999999999999999999}', b'{"a":' + b"9" * 10_000 + b"}"])
def test_numbers_no_machine_can_hold_are_only_text(data: bytes) -> None:
    assert write_record(parse_record(data)) == data


def test_equality_is_that_of_json_schema() -> None:
    assert same(plain(1), plain(1.0))
    assert same(plain({"a": [1, "x"], "b": None}), plain({"b": None, "a": [1.0, "x"]}))
    assert not same(plain(1), plain(True))
    assert not same(plain("1"), plain(1))
    assert not same(plain([1]), plain([1, 2]))
