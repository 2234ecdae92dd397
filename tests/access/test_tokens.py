"""Personal tokens: their text, their life, and what is refused."""

import datetime as dt

import pytest
import time_machine

from apps.access import services, tokens
from apps.access.models import PersonalToken
from apps.audit.models import AuditEvent
from apps.core import clock
from apps.core.errors import Unauthenticated
from tests.support import Caller


def test_a_minted_token_parses_back_and_does_not_print_itself():
    minted = tokens.mint("agt")
    text = minted.text.reveal()
    assert len(text) == len("byt_agt_") + 43 + 6
    assert tokens.parse(text).sha256 == minted.sha256
    assert text not in f"{minted!r} {minted.text} {minted.text:>10}"


@pytest.mark.parametrize("position", [9, 20, 45, 56])
def test_one_wrong_character_is_distinguished_from_a_wrong_key_without_a_query(position):
    text = tokens.mint("pat").text.reveal()
    wrong = text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1 :]
    with pytest.raises(Unauthenticated) as caught:
        tokens.parse(wrong)
    assert caught.value.code == "malformed_token"


@pytest.mark.parametrize(
    ("credential", "code"),
    [
        (None, "not_authenticated"),
        ("nonsense", "malformed_token"),
        ("byt_pat", "invalid_token"),
        ("byt_agt", "wrong_credential"),
        ("byt_enr", "wrong_credential"),
        ("byt_org", "wrong_credential"),
    ],
)
def test_anything_but_a_personal_token_is_401(db, credential, code):
    if credential and credential.startswith("byt_"):
        credential = tokens.mint(credential.removeprefix("byt_")).text.reveal()
    answer = Caller(credential).get("/me")
    assert (answer.status_code, answer.json()["code"]) == (401, code)
    assert answer["WWW-Authenticate"].startswith("Bearer")
    assert answer["Content-Type"] == "application/problem+json"
    assert answer["X-Request-Id"] == answer.json()["request_id"]


def test_a_token_is_shown_once_and_ends_at_once(tenant):
    alice = tenant.caller("alice")
    made = alice.post("/me/tokens", {"name": "laptop", "expires_in_seconds": 3600})
    assert made.status_code == 201
    text = made.json()["token"]
    listed = alice.get("/me/tokens").json()["results"]
    assert all("token" not in row for row in listed)
    assert Caller(text).get("/me").json()["email"] == "alice@example.com"
    assert alice.delete(f"/me/tokens/{made.json()['id']}").status_code == 204
    assert Caller(text).get("/me").json()["code"] == "invalid_token"
    assert alice.delete(f"/me/tokens/{made.json()['id']}").status_code == 404


def test_a_token_of_another_person_can_not_be_ended(tenant):
    row = services.create_token(actor=tenant.principal("alice"), name="x").row
    assert tenant.caller("bob").delete(f"/me/tokens/{row.pk}").status_code == 404
    row.refresh_from_db()
    assert row.revoked_at is None


def test_an_expired_token_is_token_expired(tenant):
    text = services.create_token(actor=tenant.principal("bob"), name="x", expires_in_seconds=60).text.reveal()
    with time_machine.travel(clock.now() + dt.timedelta(seconds=61), tick=False):
        assert Caller(text).get("/me").json()["code"] == "token_expired"


def test_use_is_noted_at_most_once_a_minute(tenant):
    text = services.create_token(actor=tenant.principal("bob"), name="x").text.reveal()
    public_id = tokens.parse(text).public_id
    start = clock.now()
    seen = []
    for seconds in (0, 30, 61):
        with time_machine.travel(start + dt.timedelta(seconds=seconds), tick=False):
            Caller(text).get("/me")
        seen.append(PersonalToken.objects.get(public_id=public_id).last_used_at)
    assert seen[0] == seen[1] != seen[2]


def test_deactivating_a_person_ends_their_tokens_and_sessions(tenant, client):
    bob = tenant.people["bob"]
    by_token = tenant.caller("bob")
    client.force_login(bob)
    assert client.get("/api/v1/me").status_code == 200
    staff = tenant.people["alice"]
    staff.is_superuser = True
    staff.save()
    services.change_account_state(actor=tenant.principal("alice"), user_id=bob.pk, active=False)
    assert by_token.get("/me").status_code == 401
    assert client.get("/api/v1/me").status_code == 401
    services.change_account_state(actor=tenant.principal("alice"), user_id=bob.pk, active=True)
    assert by_token.get("/me").status_code == 401, "it stays revoked when the person is activated again"
    assert client.get("/api/v1/me").status_code == 401
    recorded = AuditEvent.objects.filter(target=f"person:{bob.pk}", action__startswith="person.").order_by("seq")
    assert [(e.action, e.actor_name) for e in recorded] == [
        ("person.deactivated", "Alice"),
        ("person.activated", "Alice"),
    ]
    bob.refresh_from_db()
    assert tenant.caller("bob").get("/me").status_code == 200


def test_a_session_needs_a_csrf_token_to_write_and_none_to_read(tenant):
    from django.test import Client

    browser = Client(enforce_csrf_checks=True)
    browser.force_login(tenant.people["alice"])
    assert browser.get("/api/v1/me").json()["via"] == "session"
    refused = browser.post("/api/v1/orgs", data='{"name": "New"}', content_type="application/json")
    assert (refused.status_code, refused.json()["code"]) == (403, "csrf_failed")


def test_a_session_is_not_accepted_on_api_hosts(tenant, client, settings):
    settings.ALLOWED_HOSTS = ["api.example.com"]
    client.force_login(tenant.people["alice"])
    answer = client.get("/v1/me", HTTP_HOST="api.example.com")
    assert (answer.status_code, answer.json()["code"]) == (401, "wrong_credential")


@pytest.mark.parametrize("body", [{"name": 5}, {"name": ""}, {}, {"name": "x", "y": 1}, {"name": "x", "expires_in_seconds": "9"},
                                  {"name": "x", "expires_in_seconds": True}, {"name": "x" * 201}, [], "x",
                                  {"name": "a\x00b"}, {"name": "x", "expires_in_seconds": 0}])  # fmt: skip
def test_a_wrong_body_is_400_with_pointers(tenant, body):
    answer = tenant.caller("alice").post("/me/tokens", body)
    assert answer.status_code == 400
    assert answer.json()["status"] == 400


def test_a_huge_body_is_refused_by_its_length(tenant):
    answer = tenant.caller("alice").raw("POST", "/me/tokens", b"x" * (4 * 1024 * 1024 + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_a_body_without_a_length_is_411(tenant):
    answer = tenant.caller("alice").raw("POST", "/me/tokens", b"{}", HTTP_TRANSFER_ENCODING="chunked")
    assert (answer.status_code, answer.json()["code"]) == (411, "length_required")


@pytest.mark.parametrize("seconds", [-1, 0, 366 * 24 * 3600 + 1])
def test_a_life_that_is_too_short_or_too_long_is_refused(tenant, seconds):
    answer = tenant.caller("alice").post("/me/tokens", {"name": "x", "expires_in_seconds": seconds})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")
    [error] = answer.json()["errors"]
    assert (error["pointer"], error["code"]) == ("/expires_in_seconds", "out_of_range")


def test_another_media_type_is_415(tenant):
    answer = tenant.caller("alice").raw("POST", "/me/tokens", b"name=x", "application/x-www-form-urlencoded")
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
