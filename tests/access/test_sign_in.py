"""Signing in and out and changing a password: limited and recorded, without lockout by failed attempts from elsewhere."""

from __future__ import annotations

import ast
import datetime as dt
import json
import os
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from apps.access.backends import PeopleBackend
from apps.access.models import KnownAddress, User, account_name
from apps.access.principals import person_principal
from apps.access.services import change_account_state
from apps.access.services.accounts import checked_password
from apps.access.services.sign_in import (
    SignInOrigin,
    WrongCredentials,
    end_sessions,
    forget_expired,
    verify_password,
)
from apps.audit.models import AuditEvent
from apps.core import clock
from apps.core.errors import BadRequest, Conflict
from apps.limits import services as limits
from tests.support import PASSWORD, Tenant, attempts_of, make_person

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("one_window")]

APPS = Path(__file__).resolve().parents[2] / "apps"
WRONG = "not the password at all"
GUESSES = int(os.environ.get("BYTEOR_GUESSES", "130"))
"""`BYTEOR_GUESSES=10000` is the long form."""


@pytest.fixture
def passwords_looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The account of every password that was compared."""
    seen: list[str] = []
    look = User.check_password

    def check_password(self: User, given: str) -> bool:
        seen.append(self.email)
        return look(self, given)

    monkeypatch.setattr(User, "check_password", check_password)
    return seen


def sign_in(account: str, password: str, address: str = "198.51.100.1", browser: Client | None = None) -> Any:
    return (browser or Client()).post("/admin/login/", {"username": account, "password": password}, REMOTE_ADDR=address)


def strangers_use_up(account: str) -> None:
    """All that an account has for addresses that it does not know."""
    for number in range(attempts_of(limits.LOGINS_PER_ACCOUNT)):
        limits.check_login(limits.LoginAttempt(address=f"10.0.1.{number}", account=account))


def actions(action: str) -> list[AuditEvent]:
    return list(AuditEvent.objects.filter(action=action).order_by("seq"))


# --- what strangers can do


def test_guesses_from_one_address_end_with_429_and_the_owner_signs_in_from_elsewhere(
    tenant: Tenant, passwords_looked_at: list[str]
) -> None:
    answers = [sign_in("bob@example.com", WRONG).status_code for _ in range(GUESSES)]
    assert len(passwords_looked_at) == attempts_of(limits.LOGINS_PER_ACCOUNT_AND_ADDRESS) == answers.count(200)
    assert set(answers) == {200, 429}
    assert sign_in("bob@example.com", PASSWORD).status_code == 429
    assert sign_in("bob@example.com", PASSWORD, "203.0.113.5").status_code == 302


def test_guesses_from_many_addresses_end_with_429_and_the_owner_signs_in_where_they_did_recently(
    tenant: Tenant, passwords_looked_at: list[str]
) -> None:
    own = Client()
    assert sign_in("bob@example.com", PASSWORD, "203.0.113.5", own).status_code == 302
    passwords_looked_at.clear()
    for number in range(GUESSES):
        sign_in("bob@example.com", WRONG, f"2001:db8:{number // 65536:x}:{number % 65536:x}::1")
    assert len(passwords_looked_at) == min(attempts_of(limits.LOGINS_PER_ACCOUNT), GUESSES)
    assert sign_in("bob@example.com", PASSWORD, "203.0.113.6").status_code == 429
    assert sign_in("bob@example.com", PASSWORD, "203.0.113.5").status_code == 302, "the address is known"
    assert sign_in("bob@example.com", PASSWORD, "203.0.113.7", own).status_code == 302, "the browser is known"


def test_thirty_days_later_neither_address_nor_browser_is_known(tenant: Tenant) -> None:
    own = Client()
    sign_in("bob@example.com", PASSWORD, "203.0.113.5", own)
    with time_machine.travel(clock.now() + dt.timedelta(days=30, seconds=1), tick=False):
        strangers_use_up("bob@example.com")
        assert sign_in("bob@example.com", PASSWORD, "203.0.113.5", own).status_code == 429
        forget_expired(clock.now())
        assert not KnownAddress.objects.exists()


def test_a_forged_browser_cookie_is_no_known_browser(tenant: Tenant) -> None:
    forged = Client()
    forged.cookies["browser"] = json.dumps({"id": "x", "accounts": {tenant.people["bob"].browser_key: 9999999999}})
    strangers_use_up("bob@example.com")
    assert sign_in("bob@example.com", PASSWORD, "203.0.113.5", forged).status_code == 429


@pytest.mark.parametrize("account", ["ｂｏｂ@example.com", " Bob@Example.COM ", "bob@example．com"])
def test_every_spelling_of_an_account_is_counted_as_that_account(
    tenant: Tenant, account: str, passwords_looked_at: list[str]
) -> None:
    for _ in range(attempts_of(limits.LOGINS_PER_ACCOUNT_AND_ADDRESS)):
        sign_in("bob@example.com", WRONG)
    assert sign_in(account, PASSWORD).status_code == 429
    assert sign_in(account, PASSWORD, "203.0.113.5").status_code == 302


def test_a_refusal_has_retry_after(tenant: Tenant) -> None:
    for _ in range(attempts_of(limits.LOGINS_PER_ACCOUNT_AND_ADDRESS)):
        sign_in("bob@example.com", WRONG)
    refused = sign_in("bob@example.com", PASSWORD)
    assert refused.status_code == 429
    assert b"Too many sign-in attempts" in refused.content
    wait = int(refused["Retry-After"])
    with time_machine.travel(clock.now() + dt.timedelta(seconds=wait), tick=False):
        assert sign_in("bob@example.com", PASSWORD).status_code == 302


def test_known_and_unknown_accounts_are_refused_in_the_same_words(tenant: Tenant) -> None:
    make_person("gone", is_active=False)
    pages = []
    for account, password in (
        ("bob@example.com", WRONG),
        ("nobody@example.com", WRONG),
        ("gone@example.com", PASSWORD),
    ):
        page = sign_in(account, password)
        assert page.status_code == 200
        start = page.content.index(b"errornote")
        pages.append(page.content[start : page.content.index(b"</p>", start)])
    assert pages[0] == pages[1] == pages[2]


def test_the_service_reports_no_more_than_wrong_credentials(tenant: Tenant) -> None:
    make_person("gone", is_active=False)
    origin = SignInOrigin("203.0.113.78")
    for account, password in (("bob", WRONG), ("nobody", WRONG), ("gone", PASSWORD)):
        with pytest.raises(WrongCredentials) as refused:
            verify_password(account=f"{account}@example.com", password=password, origin=origin)
        assert (refused.value.status, refused.value.code) == (401, "wrong_credentials")
    assert verify_password(account="bob@example.com", password=PASSWORD, origin=origin) == tenant.people["bob"]


# --- audit events


def test_signing_in_and_out_is_recorded(tenant: Tenant) -> None:
    browser = Client()
    sign_in("bob@example.com", PASSWORD, "203.0.113.5", browser)
    browser.post("/admin/logout/")
    started, ended = actions("session.started"), actions("session.ended")
    bob = f"person:{tenant.people['bob'].pk}"
    assert [(e.actor, e.target, e.ip, e.details) for e in started] == [(bob, bob, "203.0.113.5", {"by": "password"})]
    assert [(e.actor, e.target) for e in ended] == [(bob, bob)]
    assert browser.get("/api/v1/me").status_code == 401


def test_signing_out_by_auth_logout_is_recorded_too(tenant: Tenant) -> None:
    browser = Client()
    sign_in("bob@example.com", PASSWORD, browser=browser)
    assert browser.post("/auth/logout").status_code == 302
    assert len(actions("session.ended")) == 1


def test_failures_are_recorded_once_an_address_and_hour_without_unknown_account_names(
    tenant: Tenant,
) -> None:
    for account in ("bob@example.com", "my.secret.password", "carol@example.com"):
        sign_in(account, WRONG, "203.0.113.5")
    sign_in("my.secret.password", WRONG, "203.0.113.6")
    first, second = actions("session.refused")
    assert (first.outcome, first.actor, first.ip) == ("denied", "address:203.0.113.5", "203.0.113.5")
    assert first.resource_scope == {"person": str(tenant.people["bob"].pk)}
    assert (second.actor, second.resource_scope) == ("address:203.0.113.6", {})
    kept = str([vars(e) for e in AuditEvent.objects.all()])
    assert "my.secret.password" not in kept


# --- changing one's password


def change(browser: Client, old: str, new: str = "an entirely new password", address: str = "198.51.100.1") -> Any:
    body = {"old_password": old, "new_password1": new, "new_password2": new}
    return browser.post("/admin/password_change/", body, REMOTE_ADDR=address)


def test_a_changed_password_ends_other_sessions_and_is_recorded(tenant: Tenant) -> None:
    here, there = Client(), Client()
    for browser in (here, there):
        sign_in("bob@example.com", PASSWORD, browser=browser)
    token = tenant.caller("bob")
    assert b"Personal tokens stay valid" in here.get("/admin/password_change/").content
    assert change(here, PASSWORD).status_code == 302
    assert here.get("/api/v1/me").status_code == 200
    assert there.get("/api/v1/me").status_code == 401
    assert token.get("/me").status_code == 200
    assert len(actions("password.changed")) == 1
    assert sign_in("bob@example.com", PASSWORD).status_code == 200
    assert sign_in("bob@example.com", "an entirely new password").status_code == 302


def test_a_wrong_present_password_or_a_weak_new_one_is_refused_at_its_field(tenant: Tenant) -> None:
    browser = Client()
    browser.force_login(tenant.people["bob"])
    for page, field, code in (
        (change(browser, WRONG, address="203.0.113.77"), "old_password", "password_incorrect"),
        (change(browser, PASSWORD, "short", "203.0.113.77"), "new_password2", "password_too_short"),
    ):
        assert page.status_code == 200
        assert [error.code for error in page.context["form"].errors.as_data()[field]] == [code]
    assert sign_in("bob@example.com", PASSWORD).status_code == 302
    with pytest.raises(BadRequest) as refused:
        checked_password("short")
    assert {(error.pointer, error.code) for error in refused.value.errors} == {("/password", "weak_password")}


def test_guesses_at_the_present_password_are_limited_and_recorded(
    tenant: Tenant, passwords_looked_at: list[str]
) -> None:
    browser = Client()
    sign_in("bob@example.com", PASSWORD, browser=browser)
    passwords_looked_at.clear()
    answers = [change(browser, WRONG).status_code for _ in range(GUESSES)]
    assert len(passwords_looked_at) == attempts_of(limits.LOGINS_PER_ACCOUNT_AND_ADDRESS) == answers.count(200)
    assert change(browser, PASSWORD).status_code == 429
    assert len(actions("password.change_refused")) == 1
    assert change(browser, PASSWORD, address="203.0.113.5").status_code == 429, "the browser's own budget is used up"
    assert browser.get("/api/v1/me").status_code == 200


# --- sessions


def test_all_sessions_of_one_person_end_at_once_and_no_other_users_do(
    tenant: Tenant, django_assert_num_queries: Any
) -> None:
    bob, carol = Client(), Client()
    sign_in("bob@example.com", PASSWORD, browser=bob)
    sign_in("carol@example.com", PASSWORD, browser=carol)
    with django_assert_num_queries(1):
        end_sessions(tenant.people["bob"])
    tenant.people["bob"].clean_fields()
    assert bob.get("/api/v1/me").status_code == 401
    assert carol.get("/api/v1/me").status_code == 200


@pytest.mark.parametrize("ends", ["deactivated", "deleted"])
def test_the_session_of_an_account_that_is_no_more_is_none(tenant: Tenant, ends: str) -> None:
    browser = Client()
    sign_in("bob@example.com", PASSWORD, browser=browser)
    assert browser.get("/api/v1/me").status_code == 200
    account = User.objects.filter(pk=tenant.people["bob"].pk)
    if ends == "deactivated":
        account.update(is_active=False)
    else:
        account.delete()
    assert PeopleBackend().get_user(tenant.people["bob"].pk) is None
    assert browser.get("/api/v1/me").status_code == 401
    assert browser.get("/admin/").status_code == 302


def test_the_person_of_a_session_and_their_roles_are_read_in_one_query(tenant: Tenant) -> None:
    browser = Client()
    browser.force_login(tenant.people["bob"])
    with CaptureQueriesContext(connection) as captured:
        assert browser.get(f"/api/v1{tenant.path()}").status_code == 200
    assert len([q for q in captured if "access_user" in q["sql"] or "access_membership" in q["sql"]]) == 1


def test_a_session_continues_under_the_former_secret_key(tenant: Tenant, settings: Any) -> None:
    end_sessions(tenant.people["bob"])
    browser = Client()
    sign_in("bob@example.com", PASSWORD, browser=browser)
    settings.SECRET_KEY_FALLBACKS, settings.SECRET_KEY = [settings.SECRET_KEY], "k" * 60
    assert browser.get("/api/v1/me").status_code == 200


def test_sessions_that_ended_by_themselves_are_deleted(tenant: Tenant) -> None:
    sign_in("bob@example.com", PASSWORD)
    sign_in("carol@example.com", PASSWORD)
    Session.objects.filter(pk=Session.objects.first().pk).update(expire_date=clock.now() - dt.timedelta(seconds=1))
    assert forget_expired(clock.now()) == 1
    assert Session.objects.count() == 1


def test_the_last_superuser_can_not_lock_platform_staff_out(tenant: Tenant) -> None:
    root = make_person("root", is_superuser=True)
    browser = Client()
    browser.force_login(root)
    page = browser.post(f"/admin/access/user/{root.pk}/change/", {"is_active": ""}, follow=True)
    assert b"last active superuser" in page.content
    assert User.objects.get(pk=root.pk).is_active
    with pytest.raises(Conflict) as refused:
        change_account_state(actor=person_principal(root), user_id=root.pk, active=False)
    assert refused.value.code == "last_superuser"
    second = make_person("second", is_superuser=True)
    browser.post(f"/admin/access/user/{second.pk}/change/", {"is_active": ""})
    assert not User.objects.get(pk=second.pk).is_active


# --- no way around


def test_no_other_module_looks_at_a_password_or_begins_a_session() -> None:
    """Every caller of Django's own functions would go around the throttle and the audit row."""
    watched = {"login", "logout", "authenticate", "check_password", "acheck_password", "force_login", "alogin"}
    found = set()
    for path in APPS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("django.contrib.auth"):
                names = {alias.name for alias in node.names} & watched
            elif isinstance(node, ast.Attribute) and node.attr in {"check_password", "acheck_password"}:
                names = {node.attr}
            else:
                continue
            found |= {(path.relative_to(APPS).as_posix(), name) for name in names}
    service = "access/services/sign_in.py"
    assert found == {(service, "login"), (service, "logout"), (service, "check_password")}


@pytest.mark.parametrize("text", ["Bob@Example.com", "ｂｏｂ@example.com", "STRASSE@ß.de", "İ@x.de", " a@b "])
def test_the_spelling_of_an_account_is_its_own_spelling(text: str) -> None:
    assert account_name(account_name(text)) == account_name(text)
