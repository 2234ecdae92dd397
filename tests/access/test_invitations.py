"""Invitations: joining with and without an account, whose address is proved, and what a planted account gains (nothing)."""

from __future__ import annotations

import datetime as dt
import io
import re
from typing import Any

import pytest
import time_machine
from django.core import mail
from django.core.cache import caches
from django.core.management import CommandError, call_command
from django.test import Client

from apps.access.models import KnownAddress, Membership, PersonalToken, User
from apps.access.roles import Role
from apps.access.services import change_account_state
from apps.access.services.mail import send_due
from apps.audit.models import AuditEvent
from apps.console.setup import add_person
from apps.core import clock
from apps.jobs.registry import chores
from apps.limits import services as limits
from apps.tenancy.models import Organization
from tests.access.test_sign_in import GUESSES
from tests.support import PASSWORD, Caller, Tenant, attempts_of, caller_for, in_threads, make_person

pytestmark = pytest.mark.django_db
LOCAL = "http://127.0.0.1:8080"
OTHER = "another good password"


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    caches["limits"].clear()


def path_of(answer: Any) -> str:
    assert answer.status_code == 201, answer.content
    return str(answer.json()["invitation_url"]).removeprefix(LOCAL)


def invite(by: Caller, organization: Any, email: str = "dora@example.com", role: str = "operator") -> str:
    return path_of(by.post(f"/orgs/{organization.pk}/members", {"email": email, "role": role}))


def mailed_link() -> str:
    """The path of the link in the mail sent last."""
    send_due(clock.now())
    found = re.search(r"https?://[^/\s]+(/auth/\S+)", str(mail.outbox[-1].body))
    assert found
    return found.group(1)


def accept(link: str, password: str = PASSWORD, browser: Client | None = None, **extra: Any) -> Any:
    return (browser or Client()).post(link, {"name": "Dora", "password": password}, **extra)


def signed_in(user: User) -> Client:
    browser = Client()
    browser.force_login(user)
    return browser


def plant(tenant: Tenant, email: str = "ceo@example.com") -> Client:
    """Charlie, of another organization, creates an account at another user's address by the link that he was shown."""
    browser = Client()
    assert (
        accept(invite(tenant.caller("charlie"), tenant.other_organization, email), browser=browser).status_code == 302
    )
    return browser


# --- new and known people


@pytest.mark.parametrize("email", ["charlie@example.com", "nobody@example.com"])
def test_the_page_does_not_reveal_whether_an_address_has_an_account(tenant: Tenant, email: str) -> None:
    link = invite(tenant.caller("alice"), tenant.organization, email)
    shown = Client().get(link)
    assert (shown.status_code, shown["Referrer-Policy"]) == (200, "same-origin")
    weak = accept(link, "short")
    assert weak.status_code == 400
    for page in (shown, weak):
        text = re.sub(r"csrfmiddlewaretoken[^>]+", "", page.content.decode()).replace(email, "")
        assert "I have an account" in text
        assert "I am new here" in text
        assert "has an account" not in text
    assert "This password is too short" in weak.content.decode()


def test_pages_and_refusals_for_known_and_unknown_addresses_are_the_same_bytes(tenant: Tenant) -> None:
    pages = []
    for email in ("charlie@example.com", "unknown@example.com"):
        link = invite(tenant.caller("alice"), tenant.organization, email)
        for page in (Client().get(link), accept(link, "short"), accept(link, "password1234")):
            text = page.content.decode().replace(email, "").replace(link, "").replace(link.replace("/", "%2F"), "")
            pages.append((page.status_code, re.sub(r'value="[A-Za-z0-9]{64}"', "", text)))
    assert pages[:3] == pages[3:]


def test_no_password_opens_an_account_that_exists(tenant: Tenant) -> None:
    link = invite(tenant.caller("alice"), tenant.organization, "charlie@example.com")
    browser = Client()
    right, wrong = accept(link, PASSWORD, browser), accept(link, OTHER, browser)
    assert right.status_code == wrong.status_code == 409
    assert browser.get("/api/v1/me").status_code == 401
    assert Membership.objects.get(organization=tenant.organization, email="charlie@example.com").status == "invited"


def test_a_user_with_an_account_signs_in_first_and_joins_without_a_password(tenant: Tenant) -> None:
    link = invite(tenant.caller("alice"), tenant.organization, "charlie@example.com")
    browser = Client()
    page = browser.get(link).content.decode()
    target = re.search(r'href="(/admin/login/\?next=[^"]+)"', page)
    assert target
    body = {"username": "charlie@example.com", "password": PASSWORD}
    back = browser.post(target.group(1), body)
    assert (back.status_code, back["Location"]) == (302, link)
    assert b">Join</button>" in browser.get(link).content
    assert browser.post(link).status_code == 302
    member = Membership.objects.get(organization=tenant.organization, email="charlie@example.com")
    assert (member.status, member.user_id) == ("active", tenant.people["charlie"].pk)
    assert browser.get(link).status_code == 404


def test_another_user_can_not_join_with_the_link(tenant: Tenant) -> None:
    link = invite(tenant.caller("alice"), tenant.organization, "charlie@example.com")
    browser = signed_in(tenant.people["vera"])
    assert b"another address" in browser.get(link).content
    assert browser.post(link).status_code == 409
    assert Membership.objects.get(organization=tenant.organization, email="charlie@example.com").status == "invited"


def test_a_deactivated_account_joins_nothing(tenant: Tenant) -> None:
    link = invite(tenant.caller("alice"), tenant.organization, "charlie@example.com")
    browser = signed_in(tenant.people["charlie"])
    User.objects.filter(pk=tenant.people["charlie"].pk).update(is_active=False)
    assert browser.post(link).status_code == 400
    assert accept(link).status_code == 409
    assert Membership.objects.get(organization=tenant.organization, email="charlie@example.com").status == "invited"


def test_a_link_ends_after_seven_days(tenant: Tenant) -> None:
    link = invite(tenant.caller("alice"), tenant.organization)
    with time_machine.travel(clock.now() + dt.timedelta(days=7, seconds=1), tick=False):
        assert Client().get(link).status_code == 404
        assert accept(link).status_code == 404
    assert accept(link).status_code == 302


def test_an_invitation_to_a_deleted_project_is_not_found(tenant: Tenant) -> None:
    path = f"/orgs/{tenant.organization.pk}/projects/{tenant.project.pk}/members"
    alice = tenant.caller("alice")
    link = path_of(alice.post(path, {"email": "dora@example.com", "role": "operator"}))
    type(tenant.project).objects.filter(pk=tenant.project.pk).update(deleted_at=clock.now())
    assert accept(link).status_code == 404


def test_joining_is_recorded_and_begins_a_recorded_session(tenant: Tenant) -> None:
    browser = Client()
    assert accept(invite(tenant.caller("alice"), tenant.organization), browser=browser).status_code == 302
    assert browser.get("/api/v1/me").json()["email"] == "dora@example.com"
    joined = AuditEvent.objects.get(action="member.joined", organization_id=tenant.organization.pk)
    started = AuditEvent.objects.get(action="session.started")
    assert joined.actor == started.actor == f"person:{User.objects.get(email='dora@example.com').pk}"
    assert started.details == {"by": "invitation"}


def test_guesses_at_an_invitation_are_limited_and_look_at_no_password(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(User, "check_password", lambda self, given: looked.append(given))
    link = invite(tenant.caller("alice"), tenant.organization, "charlie@example.com")
    with time_machine.travel(clock.now(), tick=False):
        codes = [accept(link, f"a long enough guess {n}").status_code for n in range(GUESSES)]
        elsewhere = [
            accept(
                link, f"a long enough guess {n}", REMOTE_ADDR=f"10.{n // 65536}.{n // 256 % 256}.{n % 256}"
            ).status_code
            for n in range(GUESSES)
        ]
    assert codes.count(409) == attempts_of(limits.LINK_FORMS_PER_ADDRESS)
    assert codes[-1] == 429
    assert set(elsewhere) == {409}
    assert looked == []


@pytest.mark.postgres
def test_a_double_click_makes_one_account_and_no_error(transactional_db: None, tenant: Tenant) -> None:
    link = invite(tenant.caller("alice"), tenant.organization)
    answers = in_threads(*[lambda: accept(link)] * 4)
    assert sorted(a.status_code for a in answers) == [302, 404, 404, 404]
    assert User.objects.filter(email="dora@example.com").count() == 1


@pytest.mark.postgres
def test_two_links_at_one_moment_make_one_account(transactional_db: None, tenant: Tenant) -> None:
    links = [
        invite(tenant.caller("alice"), tenant.organization),
        invite(tenant.caller("charlie"), tenant.other_organization),
    ]
    answers = in_threads(*(lambda link=link: accept(link) for link in links))  # type: ignore[misc]
    assert sorted(a.status_code for a in answers) == [302, 409]


def test_a_refused_form_leaves_no_secret_in_the_log(
    tenant: Tenant, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    link = invite(tenant.caller("alice"), tenant.organization)
    token = link.rpartition("/")[2]
    handler_format = settings.LOGGING["formatters"]["structured"]
    formatter = handler_format["()"](
        foreign_pre_chain=handler_format["foreign_pre_chain"], processors=handler_format["processors"]
    )
    strict = Client(enforce_csrf_checks=True)
    assert strict.post(link, {"password": PASSWORD}).status_code == 403
    lines = [formatter.format(record) for record in caplog.records if record.name == "django.security.csrf"]
    assert len(lines) == 1
    assert token not in lines[0]
    assert "/auth/invitations/" in lines[0]


# --- planted accounts


def test_a_planted_account_gains_nothing_when_a_second_organization_invites_its_address(tenant: Tenant) -> None:
    planter = plant(tenant)
    link = invite(tenant.caller("alice"), tenant.organization, "ceo@example.com")
    assert b"sk the platform staff" in planter.get(link).content
    assert planter.post(link).status_code == 409
    ceo = accept(link, OTHER)
    assert ceo.status_code == 409
    assert b"ask the platform staff" in ceo.content
    assert planter.get(f"/api/v1/orgs/{tenant.organization.pk}").status_code == 404
    assert Membership.objects.get(organization=tenant.organization, email="ceo@example.com").status == "invited"


def test_a_planted_account_is_taken_over_by_the_link_that_was_mailed(tenant: Tenant) -> None:
    planter = plant(tenant)
    token = planter.post("/api/v1/me/tokens", {"name": "t"}, content_type="application/json").json()["token"]
    mail.outbox.clear()
    invite(tenant.caller("alice"), tenant.organization, "ceo@example.com")
    link = mailed_link()
    ceo = Client()
    assert accept(link, OTHER, ceo).status_code == 302
    assert ceo.get(f"/api/v1/orgs/{tenant.organization.pk}").status_code == 200
    assert planter.get("/api/v1/me").status_code == 401
    assert Caller(token).get("/me").status_code == 401
    former = Membership.objects.get(organization=tenant.other_organization, email="ceo@example.com")
    assert (former.status, former.user_id) == ("invited", None)
    assert ceo.get(f"/api/v1/orgs/{tenant.other_organization.pk}").status_code == 404
    login = {"username": "ceo@example.com", "password": PASSWORD}
    assert Client().post("/admin/login/", login).status_code == 200
    assert KnownAddress.objects.filter(user__email="ceo@example.com").count() == 1, "the planter's is forgotten"
    assert Client().post("/admin/login/", {**login, "password": OTHER}).status_code == 302
    for chain in (tenant.other_organization.pk, None):
        assert AuditEvent.objects.filter(action="person.address_proved", organization_id=chain).count() == 1
    assert ceo.post("/auth/invitations", {"invitation": str(former.pk)}).status_code == 302
    assert ceo.get(f"/api/v1/orgs/{tenant.other_organization.pk}").status_code == 200


def test_the_shown_and_the_mailed_link_differ_and_either_ends_both(tenant: Tenant) -> None:
    shown = invite(tenant.caller("alice"), tenant.organization)
    mailed = mailed_link()
    assert shown != mailed
    assert accept(mailed).status_code == 302
    assert User.objects.get(email="dora@example.com").address_proved_at is not None
    assert Client().get(shown).status_code == 404


def test_a_shown_link_proves_nothing(tenant: Tenant) -> None:
    accept(invite(tenant.caller("alice"), tenant.organization))
    dora = User.objects.get(email="dora@example.com")
    assert (dora.address_proved_at, dora.origin_organization_id) == (None, tenant.organization.pk)
    answer = caller_for(dora).post("/orgs", {"name": "Mine"})
    assert (answer.status_code, answer.json()["code"]) == (403, "address_not_proved")


def test_an_account_that_is_not_proved_joins_projects_of_its_own_organization(tenant: Tenant) -> None:
    dora = Client()
    accept(invite(tenant.caller("alice"), tenant.organization, role="viewer"), browser=dora)
    path = f"/orgs/{tenant.organization.pk}/projects/{tenant.project.pk}/members"
    link = path_of(tenant.caller("alice").post(path, {"email": "dora@example.com", "role": "operator"}))
    assert dora.post(link).status_code == 302
    assert len(dora.get("/api/v1/me").json()["roles"]) == 2


def test_a_signed_in_user_with_an_unconfirmed_address_sets_a_new_password_at_the_mailed_link(tenant: Tenant) -> None:
    planter = plant(tenant)
    mail.outbox.clear()
    invite(tenant.caller("alice"), tenant.organization, "ceo@example.com")
    link = mailed_link()
    assert b"I am new here" in planter.get(link).content
    assert planter.post(link).status_code == 400
    assert accept(link, OTHER, planter).status_code == 302
    assert User.objects.get(email="ceo@example.com").address_proved_at is not None


def test_a_command_takes_a_planted_account_over_and_leaves_a_proved_one_alone(tenant: Tenant) -> None:
    planter = plant(tenant)
    made = add_person(organization=tenant.organization, email="ceo@example.com", role=Role.OPERATOR)
    assert made.password is not None
    assert planter.get("/api/v1/me").status_code == 401
    login = {"username": "ceo@example.com", "password": made.password.reveal()}
    assert Client().post("/admin/login/", login).status_code == 302
    assert Membership.objects.get(organization=tenant.other_organization, email="ceo@example.com").status == "invited"
    again = add_person(organization=tenant.organization, email="charlie@example.com", role=Role.VIEWER)
    assert again.password is None


def test_only_platform_staff_confirm_an_address_in_the_console(tenant: Tenant) -> None:
    planter = plant(tenant)
    ceo = User.objects.get(email="ceo@example.com")
    page = f"/admin/access/user/{ceo.pk}/change/"
    assert signed_in(tenant.people["alice"]).post(page, {"is_active": "on", "address_proved": "on"}).status_code == 404
    staff = signed_in(make_person("root", is_superuser=True))
    assert b"Address proved" in staff.get(page).content
    assert staff.post(page, {"is_active": "on"}).status_code == 302
    assert planter.get("/api/v1/me").status_code == 200
    assert staff.post(page, {"is_active": "on", "address_proved": "on"}).status_code == 302
    ceo.refresh_from_db()
    assert ceo.address_proved_at is not None
    assert not ceo.has_usable_password()
    assert planter.get("/api/v1/me").status_code == 401
    assert not Membership.objects.filter(user=ceo).exists()
    assert not PersonalToken.objects.filter(user=ceo, revoked_at__isnull=True).exists()
    from apps.core.errors import Forbidden

    with pytest.raises(Forbidden):
        change_account_state(actor=tenant.principal("alice"), user_id=ceo.pk, active=True, address_proved=True)


def test_only_proved_people_see_invitations_to_their_address(tenant: Tenant) -> None:
    planter = plant(tenant)
    invite(tenant.caller("alice"), tenant.organization, "ceo@example.com")
    row = Membership.objects.get(organization=tenant.organization, email="ceo@example.com")
    assert b"There are no invitations" in planter.get("/auth/invitations").content
    assert planter.post("/auth/invitations", {"invitation": str(row.pk)}).status_code == 404
    vera = signed_in(tenant.people["vera"])
    for wrong in (str(row.pk), "x", ""):
        assert vera.post("/auth/invitations", {"invitation": wrong}).status_code == 404
    assert Client().get("/auth/invitations").status_code == 302


# --- how many organizations one person makes


@pytest.mark.postgres
def test_a_person_creates_at_most_five_organizations_also_at_one_moment(transactional_db: None, tenant: Tenant) -> None:
    caller = tenant.caller("vera")
    for n in range(3):
        assert caller.post("/orgs", {"name": f"V{n}"}).status_code == 201
    answers = in_threads(
        *(lambda n=n: caller_for(tenant.people["vera"]).post("/orgs", {"name": f"W{n}"}) for n in range(4))
    )  # type: ignore[misc]
    codes = sorted(a.status_code for a in answers)
    assert codes == [201, 201, 403, 403]
    refused = next(a.json() for a in answers if a.status_code == 403)
    assert (refused["code"], refused["used"], refused["limit"]) == ("quota_exceeded", 5, 5)
    first = next(o for o in caller.get("/orgs").json()["results"] if o["name"] == "V0")
    assert caller.delete(f"/orgs/{first['id']}").status_code == 204
    assert caller.post("/orgs", {"name": "again"}).status_code == 201


def test_platform_staff_make_any_number_of_organizations(tenant: Tenant) -> None:
    staff = caller_for(make_person("root", is_superuser=True))
    assert [staff.post("/orgs", {"name": f"S{n}"}).status_code for n in range(6)] == [201] * 6


def test_a_person_invites_fifty_times_an_hour_and_then_waits(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INVITATIONS_PER_PERSON", "3/h")
    alice, path = tenant.caller("alice"), f"/orgs/{tenant.organization.pk}/members"
    with time_machine.travel(clock.now(), tick=False) as traveller:
        for number in range(3):
            invite(alice, tenant.organization, f"p{number}@example.com")
        sent = Membership.objects.filter(status="invited").count()
        refused = alice.post(path, {"email": "p4@example.com", "role": "viewer"})
        again = alice.post(path, {"email": "p0@example.com", "role": "viewer"})
        assert [(answer.status_code, answer.json()["code"]) for answer in (refused, again)] == [
            (429, "rate_limited")
        ] * 2
        wait = int(refused["Retry-After"])
        assert 0 < wait <= 3601
        assert Membership.objects.filter(status="invited").count() == sent
        page = signed_in(tenant.people["alice"]).post(
            "/admin/access/membership/add/",
            {"organization": tenant.organization.pk, "email": "p5@example.com", "role": "viewer"},
        )
        assert page.status_code == 429
        assert page["Retry-After"]
        assert "Too many invitations" in page.content.decode()
        # what is no invitation is not counted, and another person has their own
        assert alice.post(path, {"email": "no address", "role": "viewer"}).status_code == 400
        invite(tenant.caller("charlie"), tenant.other_organization)
        traveller.shift(wait)
        invite(alice, tenant.organization, "p4@example.com")


def test_an_organization_invites_two_hundred_times_a_day(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INVITATIONS_PER_ORGANIZATION", "2/d")
    second = add_person(organization=tenant.organization, email="ann@example.com", role=Role.ORG_ADMIN).user
    path = f"/orgs/{tenant.organization.pk}/members"
    with time_machine.travel(clock.now(), tick=False) as traveller:
        for number in range(2):
            invite(tenant.caller("alice"), tenant.organization, f"p{number}@example.com")
        refused = caller_for(second).post(path, {"email": "p3@example.com", "role": "viewer"})
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        wait = int(refused["Retry-After"])
        assert 0 < wait <= 86_401
        traveller.shift(wait)
        invite(caller_for(second), tenant.organization, "p3@example.com")


def test_invitations_are_open_while_the_cache_that_counts_is_away(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*given: object, **options: object) -> None:
        raise OSError("gone")

    monkeypatch.setattr(limits, "get_usage", away)
    invite(tenant.caller("alice"), tenant.organization)


def test_the_page_of_ones_invitations_holds_fifty(tenant: Tenant) -> None:
    user = make_person("dora", address_proved_at=clock.now())
    organizations = Organization.objects.bulk_create(
        Organization(name=f"Tenant {number:02}", slug=f"t-{number}") for number in range(51)
    )
    Membership.objects.bulk_create(
        Membership(
            organization=row, email=user.email, role=Role.VIEWER, invitation_expires_at=clock.now() + dt.timedelta(1)
        )
        for row in organizations
    )
    browser = signed_in(user)
    first, second = (browser.get(f"/auth/invitations{query}").content.decode() for query in ("", "?page=2"))
    assert (first.count('name="invitation"'), second.count('name="invitation"')) == (50, 1)
    assert 'href="?page=2"' in first
    assert "Page 2 of 2, 51 invitations" in second
    for odd in ("0", "-1", "99999999999999999999", "x"):
        assert browser.get("/auth/invitations", {"page": odd}).status_code == 200


@pytest.mark.postgres
def test_an_invitation_that_was_not_accepted_is_deleted_thirty_days_after_its_end(tenant: Tenant) -> None:
    link = invite(tenant.caller("alice"), tenant.organization)
    row = Membership.objects.get(email="dora@example.com")
    accepted = invite(tenant.caller("alice"), tenant.organization, "eve@example.com")
    assert accept(accepted).status_code == 302
    [chore] = [spec for spec in chores() if spec.name == "expired_sessions"]
    with time_machine.travel(clock.now() + dt.timedelta(days=36, hours=23), tick=False):
        chore.run(clock.now())
        assert Client().get(link).status_code == 404
    assert Membership.objects.filter(pk=row.pk).exists()
    with time_machine.travel(clock.now() + dt.timedelta(days=37, minutes=1), tick=False):
        chore.run(clock.now())
        chore.run(clock.now())
    assert not Membership.objects.filter(pk=row.pk).exists()
    assert Membership.objects.filter(email="eve@example.com", status="active").exists()
    [event] = AuditEvent.objects.filter(action="member.invitation_expired")
    assert (event.target, event.organization_id) == (f"member:{row.pk}", tenant.organization.pk)
    assert event.details == {"email": "dora@example.com", "role": "operator"}
    assert AuditEvent.objects.filter(action="member.invited", target=f"member:{row.pk}").exists()


@pytest.mark.postgres
def test_platform_staff_created_by_command_accept_an_invitation_without_its_link(tenant: Tenant) -> None:
    """The command confirms their address."""
    call_command("createsuperuser", "--noinput", "--email", "Root@example.com", stdout=io.StringIO())
    root = User.objects.get(email="root@example.com")
    assert root.is_superuser
    invite(tenant.caller("alice"), tenant.organization, "root@example.com")
    row = Membership.objects.get(email="root@example.com")
    assert signed_in(root).post("/auth/invitations", {"invitation": str(row.pk)}).status_code == 302
    row.refresh_from_db()
    assert (row.user_id, row.status) == (root.pk, "active")


LONG = "\ufdfa" * 14 + "@example.com"
"""266 characters once it is normalized, 26 before."""


def test_an_address_that_is_too_long_once_it_is_normalized_is_refused_by_api_and_console(tenant: Tenant) -> None:
    answer = tenant.caller("alice").post(f"/orgs/{tenant.organization.pk}/members", {"email": LONG, "role": "viewer"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")
    page = signed_in(tenant.people["alice"]).post(
        "/admin/access/membership/add/", {"organization": tenant.organization.pk, "email": LONG, "role": "viewer"}
    )
    assert page.status_code == 200
    assert b"errorlist" in page.content
    assert not Membership.objects.filter(status="invited").exists()
    assert Client().post("/auth/reset", {"email": LONG}).status_code == 400
    assert Client().post("/admin/login/", {"username": LONG, "password": "x"}).status_code == 200


@pytest.mark.postgres
@pytest.mark.parametrize(
    "command",
    [
        ["bootstrap", "--org", "New", "--admin", LONG],
        ["create_person", "--email", LONG, "--role", "viewer", "--org-id", "ORG"],
        ["reset_password", "--email", LONG],
        ["createsuperuser", "--noinput", "--email", LONG],
        ["bootstrap", "--org", "New", "--admin", "no address"],
    ],
)
def test_a_command_refuses_an_invalid_address_in_one_line(tenant: Tenant, command: list[str]) -> None:
    given = [str(tenant.organization.pk) if word == "ORG" else word for word in command]
    before = User.objects.count(), Organization.objects.count()
    with pytest.raises(CommandError) as caught:
        call_command(*given)
    assert "\n" not in str(caught.value)
    assert caught.value.returncode == (1 if command[0] == "createsuperuser" else 2)
    assert (User.objects.count(), Organization.objects.count()) == before
