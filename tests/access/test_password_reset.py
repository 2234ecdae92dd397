"""A forgotten password: by mail or by platform staff, and what ends with it."""

from __future__ import annotations

import datetime as dt
import json
import re
import secrets
import smtplib
from typing import Any

import pytest
import time_machine
from django.core import mail
from django.core.cache import caches
from django.core.management import CommandError, call_command
from django.test import Client

from apps.access.models import MailKind, MailRequest, Membership, PasswordReset, PersonalToken, User
from apps.access.pages import forms
from apps.access.principals import person_principal
from apps.access.roles import Role
from apps.access.services import create_token
from apps.access.services import mail as sender
from apps.audit.models import AuditEvent
from apps.core import clock
from apps.core.errors import Unauthenticated
from apps.jobs.registry import chores
from apps.limits import services as limits
from byteor.config import BadSetting, _email
from tests.access.test_sign_in import GUESSES
from tests.support import PASSWORD, Tenant, attempts_of, give_role, make_person

pytestmark = pytest.mark.django_db
NEW = "a password that is new"


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    caches["limits"].clear()


def ask(email: str, **extra: Any) -> Any:
    return Client().post("/auth/reset", {"email": email}, **extra)


def send() -> int:
    chore = next(spec for spec in chores() if spec.name == "mail")
    return chore.run(clock.now())


def link(number: int = -1) -> str:
    found = re.search(r"http://127\.0\.0\.1:8080(/auth/reset/\S+)", str(mail.outbox[number].body))
    assert found
    return found.group(1)


def use(path: str, password: str = NEW, **extra: Any) -> Any:
    return Client().post(path, {"password": password}, **extra)


def sign_in(email: str, password: str) -> int:
    return Client().post("/admin/login/", {"username": email, "password": password}).status_code


def test_the_sign_in_page_leads_there() -> None:
    assert b'href="/auth/reset"' in Client().get("/admin/login/").content


def test_a_mailed_link_sets_the_password_once(tenant: Tenant) -> None:
    ask("Bob@Example.com")
    assert send() == 1
    assert mail.outbox[0].to == ["bob@example.com"]
    assert "ByteOr Cloud.\n\nhttp://127.0.0.1:8080/auth/reset/" in str(mail.outbox[0].body)
    event = AuditEvent.objects.get(action="password.reset_mailed")
    assert (event.actor, event.target) == ("system:byteor", f"person:{tenant.people['bob'].pk}")
    page = Client().get(link())
    assert (page.status_code, page["Referrer-Policy"]) == (200, "same-origin")
    assert use(link(), "short").status_code == 400
    assert use(link()).status_code == 302
    assert sign_in("bob@example.com", PASSWORD) == 200
    assert sign_in("bob@example.com", NEW) == 302
    assert Client().get(link()).status_code == use(link()).status_code == 404


def test_asking_answers_and_works_alike_for_known_and_unknown_addresses(
    tenant: Tenant, django_assert_num_queries: Any
) -> None:
    pages = []
    for email in ("bob@example.com", "nobody@example.com"):
        with django_assert_num_queries(4):
            page = ask(email)
        assert page.status_code == 200
        pages.append(re.sub(rb'"[A-Za-z0-9]{64}"', b"", page.content))
    assert pages[0] == pages[1]
    assert send() == 1
    assert not MailRequest.objects.exists()
    assert "nobody@example.com" not in str([vars(e) for e in AuditEvent.objects.all()])


def test_a_reset_ends_sessions_tokens_and_other_links_and_is_recorded_in_each_organization(tenant: Tenant) -> None:
    bob = tenant.people["bob"]
    give_role(bob, Role.VIEWER, tenant.other_organization)
    token, browser = tenant.caller("bob"), Client()
    browser.force_login(bob)
    for _ in range(2):
        ask("bob@example.com")
        send()
    assert use(link(0)).status_code == 302
    assert token.get("/me").status_code == 401
    assert browser.get("/api/v1/me").status_code == 401
    assert use(link(1)).status_code == 404
    where = set(AuditEvent.objects.filter(action="password.reset").values_list("organization_id", flat=True))
    assert where == {tenant.organization.pk, tenant.other_organization.pk, None}
    assert Membership.objects.filter(user=bob, status="active").count() == 2


def test_a_changed_password_ends_reset_links(tenant: Tenant) -> None:
    browser = Client()
    browser.force_login(tenant.people["bob"])
    for name in ("bob", "carol"):
        ask(f"{name}@example.com")
    assert send() == 2
    paths = {mail.outbox[n].to[0]: link(n) for n in (0, 1)}
    fields = {"old_password": PASSWORD, "new_password1": NEW, "new_password2": NEW}
    assert browser.post("/admin/password_change/", fields).status_code == 302
    assert use(paths["bob@example.com"], "another good password").status_code == 404
    assert sign_in("bob@example.com", NEW) == 302
    assert use(paths["carol@example.com"]).status_code == 302


def test_a_link_ends_after_an_hour(tenant: Tenant) -> None:
    ask("bob@example.com")
    send()
    with time_machine.travel(clock.now() + dt.timedelta(hours=1, seconds=1), tick=False):
        assert use(link()).status_code == 404


def test_an_account_that_is_not_proved_is_proved_by_a_reset(tenant: Tenant) -> None:
    User.objects.filter(pk=tenant.people["bob"].pk).update(
        address_proved_at=None, origin_organization_id=tenant.organization.pk
    )
    ask("bob@example.com")
    send()
    assert use(link()).status_code == 302
    assert sign_in("bob@example.com", NEW) == 302
    assert not Membership.objects.filter(user=tenant.people["bob"]).exists()
    browser = Client()
    back = browser.post("/admin/login/?next=/admin/", {"username": "bob@example.com", "password": NEW})
    assert back["Location"] == "/auth/invitations"
    page = browser.get("/auth/invitations").content.decode()
    (row,) = Membership.objects.filter(email="bob@example.com")
    assert str(row.pk) in page
    assert browser.post("/auth/invitations", {"invitation": str(row.pk)}).status_code == 302
    assert Membership.objects.filter(user=tenant.people["bob"], status="active").count() == 1


def test_a_deactivated_account_gets_no_link_and_can_not_use_one(tenant: Tenant) -> None:
    ask("bob@example.com")
    send()
    User.objects.filter(pk=tenant.people["bob"].pk).update(is_active=False)
    assert use(link()).status_code == 404
    ask("bob@example.com")
    assert send() == 0


def test_an_account_gets_at_most_three_links_an_hour_and_asking_again_is_one_mail(tenant: Tenant) -> None:
    ask("bob@example.com")
    ask("bob@example.com")
    assert send() == 1
    for _ in range(4):
        ask("bob@example.com")
        send()
    assert len(mail.outbox) == sender.RESETS_PER_HOUR


def test_asking_and_using_are_limited_per_address(tenant: Tenant) -> None:
    with time_machine.travel(clock.now(), tick=False):
        codes = [ask(f"p{n}@example.com").status_code for n in range(attempts_of(limits.LINK_FORMS_PER_ADDRESS) + 1)]
        assert codes == [200] * attempts_of(limits.LINK_FORMS_PER_ADDRESS) + [429]
        assert ask("bob@example.com", REMOTE_ADDR="203.0.113.5").status_code == 200
        while MailRequest.objects.exists():
            send()
        assert use(link()).status_code == 429
        assert use(link(), REMOTE_ADDR="203.0.113.5").status_code == 302


def test_guesses_at_reset_links_open_nothing_and_look_at_no_password(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(User, "check_password", lambda self, given: looked.append(given))
    ask("bob@example.com")
    send()
    codes = {use(f"/auth/reset/{secrets.token_urlsafe(32)}").status_code for _ in range(GUESSES)}
    assert codes == {404}
    assert looked == []
    assert use(link()).status_code == 302


def test_a_mail_that_can_not_be_sent_holds_up_no_other_and_is_sent_later_with_the_same_link(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sender.EmailMessage.send
    tried: list[str] = []

    def fails_for_bob(self: Any, *args: Any) -> int:
        if self.to == ["bob@example.com"]:
            tried.append(str(self.body))
            raise smtplib.SMTPServerDisconnected("or anything else")
        return real(self, *args)

    monkeypatch.setattr(sender.EmailMessage, "send", fails_for_bob)
    for name in ("bob", "carol"):
        ask(f"{name}@example.com")
    assert send() == 1
    assert mail.outbox[0].to == ["carol@example.com"]
    monkeypatch.setattr(sender.EmailMessage, "send", real)
    assert send() == 0, "not due again at once"
    with time_machine.travel(clock.now() + dt.timedelta(seconds=6), tick=False):
        assert send() == 1
    assert str(mail.outbox[1].body) == tried[0]
    assert PasswordReset.objects.filter(user=tenant.people["bob"]).count() == 1


def test_a_mail_is_given_up_when_its_link_would_have_ended(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any, *args: Any) -> int:
        raise ConnectionRefusedError

    monkeypatch.setattr(sender.EmailMessage, "send", fails)
    ask("bob@example.com")
    with time_machine.travel(clock.now() + dt.timedelta(hours=1), tick=False):
        assert send() == 0
    assert not MailRequest.objects.exists()


def test_a_mail_to_an_address_that_can_not_be_encoded_is_given_up_as_any_other(tenant: Tenant) -> None:
    """Such an address is refused now, but may be stored."""
    member = Membership.objects.create(
        organization=tenant.organization,
        email=f"a@{'ü' * 60}.de",
        role=Role.VIEWER,
        invitation_expires_at=clock.now() + dt.timedelta(days=7),
    )
    sender.request_mail(MailKind.INVITATION, email=member.email, membership=member)
    assert send() == 0
    assert MailRequest.objects.get().attempts == 1
    ask("bob@example.com")
    assert send() == 1
    with time_machine.travel(clock.now() + dt.timedelta(days=6, hours=23, minutes=59), tick=False):
        send()
        assert MailRequest.objects.get().attempts == 2
    with time_machine.travel(clock.now() + dt.timedelta(days=8), tick=False):
        send()
    assert not MailRequest.objects.exists()


def test_the_database_holds_no_link(tenant: Tenant) -> None:
    ask("bob@example.com")
    send()
    token = link().rpartition("/")[2]
    assert token not in str([vars(row) for row in PasswordReset.objects.all()])


def test_without_mail_the_page_names_platform_staff_and_nothing_is_asked(tenant: Tenant, settings: Any) -> None:
    settings.BYTEOR_SENDS_MAIL = False
    page = ask("bob@example.com")
    assert (page.status_code, b"Ask the platform staff" in page.content) == (200, True)
    made = tenant.caller("alice").post(
        f"/orgs/{tenant.organization.pk}/members", {"email": "x@example.com", "role": "viewer"}
    )
    assert made.status_code == 201
    assert not MailRequest.objects.exists()


def test_platform_staff_make_a_link_by_command(tenant: Tenant, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("reset_password", "--email", "Bob@example.com", "--json")
    made = json.loads(capsys.readouterr().out)
    assert made["email"] == "bob@example.com"
    path = made["reset_url"].removeprefix("http://127.0.0.1:8080")
    assert use(path).status_code == 302
    assert sign_in("bob@example.com", NEW) == 302
    assert AuditEvent.objects.get(action="password.reset_link_made").actor == "system:command line"
    call_command("reset_password", "--email", "bob@example.com")
    assert "http://127.0.0.1:8080/auth/reset/" in capsys.readouterr().out
    with pytest.raises(CommandError) as refused:
        call_command("reset_password", "--email", "nobody@example.com")
    assert refused.value.returncode == 2


def test_a_superuser_resets_too(tenant: Tenant) -> None:
    make_person("root", is_superuser=True)
    ask("root@example.com")
    send()
    assert use(link()).status_code == 302
    assert sign_in("root@example.com", NEW) == 302


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        (
            "smtps://me:p%40ss@mail.example.com",
            {"EMAIL_PORT": 587, "EMAIL_USE_TLS": True, "EMAIL_HOST_PASSWORD": "p@ss"},
        ),
        ("smtp+ssl://mail.example.com", {"EMAIL_PORT": 465, "EMAIL_USE_SSL": True, "EMAIL_HOST": "mail.example.com"}),
        (
            "smtp://mail.example.com:2525?from=a@b.de",
            {"EMAIL_PORT": 2525, "DEFAULT_FROM_EMAIL": "ByteOr Cloud <a@b.de>"},
        ),
        ("filemail:///var/mails", {"EMAIL_FILE_PATH": "/var/mails"}),
        ("consolemail://", {"EMAIL_BACKEND": "django.core.mail.backends.console.EmailBackend"}),
    ],
)
def test_a_mail_url_is_read(url: str, wanted: dict[str, Any]) -> None:
    found = _email(url, sender="no-reply@x.de")
    assert found["EMAIL_TIMEOUT"] == 10
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    "url", ["ftp://x", "mail.example.com", "smtp://", "smtp://x:port", "smtp://x?to=y@z", "smtp://x?from=z"]
)
def test_a_wrong_mail_url_is_refused_at_start(url: str) -> None:
    with pytest.raises(BadSetting, match="EMAIL_URL"):
        _email(url, sender="no-reply@x.de")


def test_a_password_change_and_a_token_that_were_under_way_at_a_reset_are_refused(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("bob@example.com")
    send()
    browser, path, hashing = Client(), link(), forms.hash_password
    browser.force_login(tenant.people["bob"])
    under_way = person_principal(User.objects.get(email="bob@example.com"))

    def hash_slowly(text: str) -> str:
        assert use(path).status_code == 302  # the owner is faster
        return hashing(text)

    monkeypatch.setattr(forms, "hash_password", hash_slowly)
    other = "what a thief wants it to be"
    fields = {"old_password": PASSWORD, "new_password1": other, "new_password2": other}
    answer = browser.post("/admin/password_change/", fields)
    assert (answer.status_code, answer["Location"]) == (302, "/admin/login/")
    assert (sign_in("bob@example.com", NEW), sign_in("bob@example.com", other)) == (302, 200)
    with pytest.raises(Unauthenticated):
        create_token(actor=under_way, name="left behind")


@pytest.mark.postgres
def test_a_link_is_deleted_thirty_days_after_it_was_used_or_expired(tenant: Tenant) -> None:
    user, now = tenant.people["bob"], clock.now()
    day = dt.timedelta(days=1)

    def made(name: str, expires: dt.timedelta, used: dt.timedelta | None = None) -> None:
        PasswordReset.objects.create(
            user=user, sha256=name, expires_at=now + expires, used_at=now + used if used is not None else None
        )

    made("open", day)
    made("expired lately", -29 * day)
    made("expired long ago", -31 * day)
    made("used lately", -30.5 * day + 2 * day, -29 * day)
    made("used long ago", -31 * day, -31 * day)
    [chore] = [spec for spec in chores() if spec.name == "expired_sessions"]
    chore.run(now)
    assert set(PasswordReset.objects.values_list("sha256", flat=True)) == {"open", "expired lately", "used lately"}


@pytest.mark.postgres
def test_a_personal_token_is_deleted_thirty_days_after_it_was_revoked_or_expired(tenant: Tenant) -> None:
    user, now, day = tenant.people["bob"], clock.now(), dt.timedelta(days=1)
    made = {
        "good": (day, None),
        "expired lately": (-29 * day, None),
        "expired long ago": (-31 * day, None),
        "revoked lately": (day, -29 * day),
        "revoked long ago": (day, -31 * day),
    }
    for name, (expires, revoked) in made.items():
        PersonalToken.objects.create(
            user=user,
            name=name,
            public_id=name,
            sha256=name,
            expires_at=now + expires,
            revoked_at=now + revoked if revoked is not None else None,
        )
    [chore] = [spec for spec in chores() if spec.name == "expired_sessions"]
    chore.run(now)
    names = PersonalToken.objects.filter(user=user, name__in=made).values_list("name", flat=True)
    assert set(names) == {"good", "expired lately", "revoked lately"}
