"""Whose word is taken about where a request came from."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.core.wsgi import get_wsgi_application
from hypothesis import given
from hypothesis import strategies as st

from apps.limits import services as limits
from byteor.server.proxies import TrustedProxies, behind_proxies, parse_address
from tests.support import attempts_of

PROXIES = TrustedProxies.parse("10.0.0.0/8, 2001:db8:1::/48,192.0.2.7")


@pytest.mark.parametrize(
    ("peer", "lines", "address"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, 10.0.0.3, 192.0.2.7"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1", "10.0.0.3"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.9, 10.0.0.3"], "10.0.0.9"),
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, unknown, 10.0.0.3"], "10.0.0.3"),
        ("10.0.0.1", [", ,198.51.100.1,"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8:2::1]:4711"], "2001:db8:2::1"),
        ("10.0.0.1", ['"[2001:DB8:2:0::1]"'], "2001:db8:2::1"),
        ("2001:db8:1::5", ["2001:db8:2::1"], "2001:db8:2::1"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("192.0.2.8", ["198.51.100.1"], "192.0.2.8"),
        ("", ["198.51.100.1"], ""),
    ],
)
def test_the_address_is_the_right_most_that_is_no_proxys(peer: str, lines: list[str], address: str) -> None:
    assert PROXIES.origin(peer, "http", lines).address == address


@pytest.mark.parametrize(
    ("peer", "hops", "words", "scheme"),
    [
        ("203.0.113.9", ["198.51.100.1"], ["https"], "http"),
        ("10.0.0.1", ["198.51.100.1"], ["https"], "https"),
        ("10.0.0.1", ["198.51.100.1"], ["HTTPS"], "https"),
        ("10.0.0.1", [], ["https"], "https"),
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2"], ["https"], "https"),
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2"], ["https, http"], "https"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], ["https, http"], "http"),
        ("10.0.0.1", ["198.51.100.1"], ["https", "http"], "http"),
        ("10.0.0.1", ["198.51.100.1"], ["gopher"], "http"),
        ("10.0.0.1", ["198.51.100.1"], [], "http"),
    ],
)
def test_the_scheme_is_accepted_from_proxies_only(peer: str, hops: list[str], words: list[str], scheme: str) -> None:
    assert PROXIES.origin(peer, "http", hops, words).scheme == scheme


@given(st.lists(st.text(max_size=60), max_size=4), st.lists(st.text(max_size=20), max_size=3))
def test_no_header_makes_it_fail_or_name_what_is_no_address(hops: list[str], words: list[str]) -> None:
    origin = PROXIES.origin("10.0.0.1", "http", hops, words)
    assert parse_address(origin.address) is not None
    assert origin.scheme in ("http", "https")


@given(st.lists(st.text(alphabet="0123456789.,:abcdef ", max_size=60), max_size=4))
def test_what_a_client_writes_to_the_left_moves_nothing(forged: list[str]) -> None:
    assert PROXIES.origin("10.0.0.1", "http", [*forged, "198.51.100.1"]).address == "198.51.100.1"
    assert TrustedProxies().origin("10.0.0.1", "http", forged, ["https"]) == PROXIES.origin("10.0.0.1", "http")


@pytest.mark.parametrize("text", ["", "proxy.internal", "10.0.0.1/8", "10.0.0.0/8,", "*", "none,10.0.0.0/8"])
def test_what_is_no_list_of_networks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        TrustedProxies.parse(text)


def test_none_trusts_no_proxy() -> None:
    assert TrustedProxies.parse("none").networks == ()


def ask(proxies: TrustedProxies, path: str, body: bytes = b"", **variables: str) -> tuple[int, dict[str, str]]:
    """Status and headers of one request, through the WSGI application as a server would call it."""
    answered: dict[str, Any] = {}

    def start(status: str, headers: list[tuple[str, str]]) -> None:
        answered.update(status=int(status[:3]), headers=dict(headers))

    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST" if body else "GET",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "testserver",
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": "application/json",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        **variables,
    }
    pieces = behind_proxies(get_wsgi_application(), proxies)(environ, start)
    list(pieces)
    pieces.close()  # type: ignore[attr-defined]
    return answered["status"], answered["headers"]


@pytest.mark.django_db
def test_strangers_behind_one_proxy_are_counted_apart(one_window: None) -> None:
    def attempt(address: str) -> int:
        return ask(
            PROXIES,
            "/api/v1/me",
            REMOTE_ADDR="10.0.0.1",
            HTTP_X_FORWARDED_FOR=f"6.6.6.6, {address}",
            HTTP_AUTHORIZATION="Bearer nonsense",
        )[0]

    codes = [attempt("198.51.100.1") for _ in range(attempts_of(limits.FAILED_AUTHENTICATIONS_PER_ADDRESS) + 1)]
    assert codes[-1] == 429
    assert attempt("198.51.100.2") == 401
    assert (
        ask(
            PROXIES,
            "/api/v1/me",
            REMOTE_ADDR="198.51.100.3",
            HTTP_X_FORWARDED_FOR="198.51.100.1",
            HTTP_AUTHORIZATION="Bearer nonsense",
        )[0]
        == 401
    )


@pytest.mark.django_db
def test_a_scheme_from_a_stranger_does_not_make_a_request_secure(settings: Any) -> None:
    settings.SECURE_SSL_REDIRECT = True
    secure = {"HTTP_X_FORWARDED_PROTO": "https"}
    assert ask(PROXIES, "/install.sh", REMOTE_ADDR="198.51.100.1", **secure)[0] == 301
    assert ask(PROXIES, "/install.sh", REMOTE_ADDR="10.0.0.1", **secure)[0] == 200
