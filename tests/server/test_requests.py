"""Character sets that a client names, and characters that no database stores, are no error of ours."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.core.cache import caches
from django.test import Client, RequestFactory

from byteor.server.requests import Handler
from tests.support import Tenant

pytestmark = pytest.mark.django_db
HEADERS = [
    *(f"text/plain; charset={name}" for name in ("hex", "rot13", "undefined", "idna", "utf-7", "utf-16", "nothing")),
    "text/plain; charset*=undefined''a",
    "text/plain; x*=nothing''%41",
    'text/plain; "',
]


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    caches["limits"].clear()


def status_of(method: str, path: str, body: bytes = b"", query: str = "", **environ: Any) -> int:
    """The status of a request that is made of its head, as the handler does (whose signals would end the test's connection)."""
    made = RequestFactory()._base_environ(REQUEST_METHOD=method, PATH_INFO=path, QUERY_STRING=query, **environ)
    made |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    handler = Handler()
    return handler.get_response(handler.request_class(made)).status_code


@pytest.mark.parametrize("header", HEADERS)
def test_a_head_that_names_any_character_set_is_answered(header: str) -> None:
    assert status_of("GET", "/admin/login/", query="next=%41", CONTENT_TYPE=header) == 200
    assert status_of("GET", "/api/v1/me", query="x=%41", CONTENT_TYPE=header) == 401
    assert status_of("GET", "/api/v1/me", HTTP_ACCEPT=f"application/json, {header}") == 401


@pytest.mark.parametrize("charset", ["utf-7", "unicode_escape", "hex", "undefined"])
def test_a_form_is_read_as_utf_8_whatever_its_charset(charset: str) -> None:
    token = "a" * 32
    parts = {
        "csrfmiddlewaretoken": token.encode(),
        "username": b"+2AA-\\ud800x@example.com",
        "password": b"+2AA-\\ud800",
    }
    body = b"".join(
        b'--B\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in parts.items()
    )
    kind = f"multipart/form-data; boundary=B; charset={charset}"
    made = {"CONTENT_TYPE": kind, "HTTP_COOKIE": f"csrftoken={token}"}
    assert status_of("POST", "/admin/login/", body + b"--B--\r\n", **made) == 200


@pytest.mark.postgres
@pytest.mark.parametrize("path", ["/admin/login/", "/auth/invitations", "/api/v1/me", "/auth/reset"])
def test_a_session_cookie_that_is_no_key_is_none(path: str) -> None:
    cookie = 'sessionid="abcdefghij\\000klm"'
    assert Client().get(path, HTTP_COOKIE=cookie).status_code == Client().get(path).status_code


@pytest.mark.postgres
def test_an_address_that_grows_when_it_is_normalised_is_refused(tenant: Tenant) -> None:
    # one character that is four in compatibility form
    address = "a@" + ".".join(["\u3300" * 10] * 20) + ".com"
    assert len(address) < 254
    assert Client().post("/auth/reset", {"email": address}).status_code == 400
    members = f"/orgs/{tenant.organization.pk}/members"
    answer = tenant.caller("alice").post(members, {"email": address, "role": "viewer"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/email")
