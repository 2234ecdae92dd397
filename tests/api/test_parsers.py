"""JSON in, strictly."""

import io

import pytest

from apps.api.parsers import MAX_DEPTH, parse_json
from apps.core.errors import BadRequest


class HungUp(io.RawIOBase):
    """A body whose client hangs up before its end."""

    def readinto(self, buffer) -> int:
        raise ConnectionResetError


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "malformed_json"),
        (b"\xff\xfe", "malformed_json"),
        (b'{"a":1,"a":2}', "duplicate_key"),
        (b'{"a":NaN}', "malformed_json"),
        (b'{"a":1e999}', "malformed_json"),
        (b'{"a":-1e999}', "malformed_json"),
        (b'{"a":"\\u0000"}', "malformed_json"),
        (b'{"a":"\\ud800"}', "malformed_json"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested_too_deeply"),
        (b"[" * 200_000, "nested_too_deeply"),
        (b'{"a":' + b"9" * 5000 + b"}", "malformed_json"),
    ],
)
def test_what_is_not_strict_json_is_a_bad_request(body, code):
    with pytest.raises(BadRequest) as caught:
        parse_json(body)
    assert caught.value.code == code


def test_brackets_inside_strings_are_not_nesting():
    text = "[" * 1000 + '\\"' + "{" * 1000
    assert parse_json(b'{"a":"' + text.encode() + b'"}') == {"a": text.replace('\\"', '"')}


def test_a_surrogate_pair_is_one_character():
    assert parse_json(b'{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_a_body_that_ends_early_is_a_bad_request(tenant):
    answer = tenant.caller("alice").raw("POST", "/me/tokens", b'{"name": "x"}', **{"wsgi.input": HungUp()})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_body")
