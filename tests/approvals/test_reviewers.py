"""Four eyes are of two people who do not depend on each other: `reviewer_recently_added`."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from typing import Any

import pytest
import time_machine
from django.core.cache import caches
from django.test import Client

from apps.access.models import Membership, RoleGrant, User
from apps.access.roles import Role
from apps.approvals.models import Approval
from apps.approvals.reviewers import HeldRole, Request, RoleHistory
from apps.audit.models import AuditEvent
from apps.console.setup import add_person
from apps.core import clock
from tests.approvals.test_approvals import ask, vote
from tests.support import PASSWORD, Tenant

pytestmark = pytest.mark.django_db
HOUR = dt.timedelta(hours=1)


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    caches["limits"].clear()


def join(tenant: Tenant, by: str, name: str, role: str = "operator") -> User:
    """`name` joins by an invitation of `by`, whose link `by` was shown."""
    path = f"/orgs/{tenant.organization.pk}/members"
    email = f"{name}@example.com"
    made = tenant.caller(by).post(path, {"email": email, "role": role})
    link = made.json()["invitation_url"].removeprefix("http://127.0.0.1:8080")
    assert Client().post(link, {"name": name.capitalize(), "password": PASSWORD}).status_code == 302
    tenant.people[name] = User.objects.get(email=email)
    return tenant.people[name]


def give(tenant: Tenant, by: str, name: str, role: str) -> None:
    row = Membership.objects.get(organization=tenant.organization, project=None, user=tenant.people[name])
    path = f"/orgs/{tenant.organization.pk}/members/{row.pk}"
    assert tenant.caller(by).put(path, {"role": role}).status_code == 200


def outcome(tenant: Tenant, who: str, approval: Approval, word: str = "approve") -> tuple[int, str]:
    answer = vote(tenant, who, approval, word, comment="because")
    return answer.status_code, answer.json().get("code", "")


REFUSED = (409, "reviewer_recently_added")


def test_the_requesters_fresh_puppet_can_not_approve_but_deny(tenant: Tenant) -> None:
    approval = ask(tenant, who="alice")
    join(tenant, "alice", "puppet")
    assert outcome(tenant, "puppet", approval) == REFUSED
    assert AuditEvent.objects.filter(outcome="denied", details__reason="reviewer_recently_added").count() == 1
    assert outcome(tenant, "puppet", approval, "deny") == (200, "")


def test_a_reviewer_who_joined_before_the_request_can_not_approve_it_either(tenant: Tenant) -> None:
    join(tenant, "alice", "puppet")
    assert outcome(tenant, "puppet", ask(tenant, who="alice")) == REFUSED


def test_a_puppets_puppet_can_not_approve(tenant: Tenant) -> None:
    join(tenant, "alice", "first", "org_admin")
    join(tenant, "first", "second", "org_admin")
    join(tenant, "second", "third")
    approval = ask(tenant, who="alice")
    for name in ("first", "second", "third"):
        assert outcome(tenant, name, approval) == REFUSED


def test_an_operator_promoted_by_the_requester_before_accepting_can_not_approve(tenant: Tenant) -> None:
    path = f"/orgs/{tenant.organization.pk}/members"
    made = tenant.caller("alice").post(path, {"email": "puppet@example.com", "role": "viewer"}).json()
    give(tenant, "alice", "bob", "org_admin")
    assert tenant.caller("bob").put(f"{path}/{made['id']}", {"role": "operator"}).status_code == 200
    link = made["invitation_url"].removeprefix("http://127.0.0.1:8080")
    assert Client().post(link, {"name": "Puppet", "password": PASSWORD}).status_code == 302
    tenant.people["puppet"] = User.objects.get(email="puppet@example.com")
    assert RoleGrant.objects.get(user=tenant.people["puppet"]).granted_by == tenant.people["bob"].pk
    assert outcome(tenant, "puppet", ask(tenant, who="bob")) == REFUSED


def test_the_inviter_can_not_approve_a_request_of_an_invited_puppet_nor_can_another_puppet(tenant: Tenant) -> None:
    join(tenant, "alice", "first")
    join(tenant, "alice", "second")
    approval = ask(tenant, who="first")
    assert outcome(tenant, "alice", approval) == REFUSED
    assert outcome(tenant, "second", approval) == REFUSED
    assert outcome(tenant, "bob", approval) == (200, "")


def test_removing_the_puppet_after_its_request_does_not_help(tenant: Tenant) -> None:
    puppet = join(tenant, "alice", "puppet")
    approval = ask(tenant, who="puppet")
    row = Membership.objects.get(user=puppet)
    assert tenant.caller("alice").delete(f"/orgs/{tenant.organization.pk}/members/{row.pk}").status_code == 204
    assert outcome(tenant, "alice", approval) == REFUSED


def test_removing_an_intermediate_user_does_not_help(tenant: Tenant) -> None:
    middle = join(tenant, "alice", "middle", "org_admin")
    join(tenant, "middle", "puppet")
    row = Membership.objects.get(user=middle)
    assert tenant.caller("alice").delete(f"/orgs/{tenant.organization.pk}/members/{row.pk}").status_code == 204
    assert outcome(tenant, "puppet", ask(tenant, who="alice")) == REFUSED


def test_a_viewer_made_operator_by_the_requester_can_not_approve(tenant: Tenant) -> None:
    give(tenant, "alice", "vera", "operator")
    assert outcome(tenant, "vera", ask(tenant, who="alice")) == REFUSED
    assert outcome(tenant, "vera", ask(tenant, tenant.staging, "b:drop", who="bob")) == (200, "")


def test_after_24_hours_from_joining_they_may_approve(tenant: Tenant) -> None:
    path = f"/orgs/{tenant.organization.pk}/members"
    made = tenant.caller("alice").post(path, {"email": "late@example.com", "role": "operator"}).json()
    link = made["invitation_url"].removeprefix("http://127.0.0.1:8080")
    start = clock.now()
    with time_machine.travel(start + 30 * HOUR, tick=False):
        assert Client().post(link, {"password": PASSWORD}).status_code == 302
        tenant.people["late"] = User.objects.get(email="late@example.com")
    with time_machine.travel(start + 53 * HOUR, tick=False):
        approval = ask(tenant, who="alice")
        refused = vote(tenant, "late", approval)
        assert refused.json()["code"] == "reviewer_recently_added"
        assert refused.json()["may_approve_at"] == clock.rfc3339(start + 54 * HOUR)
    with time_machine.travel(start + 54 * HOUR, tick=False):
        assert outcome(tenant, "late", approval) == (200, "")


def test_a_role_granted_again_is_new_only_if_the_requester_granted_it(tenant: Tenant) -> None:
    join(tenant, "alice", "ada", "org_admin")
    with time_machine.travel(clock.now() + 25 * HOUR):
        approval = ask(tenant, who="alice")
        give(tenant, "ada", "carol", "viewer")
        assert outcome(tenant, "carol", approval) == (403, "permission_denied")
        give(tenant, "ada", "carol", "operator")
        assert outcome(tenant, "carol", approval) == (200, "")
        second = ask(tenant, tenant.prod, who="alice")
        give(tenant, "ada", "bob", "viewer")
        give(tenant, "alice", "bob", "operator")
        assert outcome(tenant, "bob", second) == REFUSED


def test_a_vote_from_before_does_not_come_back_with_a_role_that_the_requester_gave_back(tenant: Tenant) -> None:
    join(tenant, "alice", "ada", "org_admin")
    with time_machine.travel(clock.now() + 25 * HOUR):
        approval = ask(tenant, tenant.prod, who="alice")
        assert outcome(tenant, "carol", approval) == (200, "")
        give(tenant, "ada", "carol", "viewer")
        give(tenant, "alice", "carol", "operator")
        assert vote(tenant, "bob", approval).json()["status"] == "pending"
        give(tenant, "ada", "carol", "viewer")
        give(tenant, "ada", "carol", "operator")
        assert Approval.objects.get(pk=approval.pk).status == "pending"


def test_a_reviewer_promoted_from_one_operating_role_to_another_may_approve(tenant: Tenant) -> None:
    give(tenant, "alice", "carol", "org_admin")
    assert outcome(tenant, "carol", ask(tenant, who="alice")) == (200, "")


def test_a_user_created_by_a_command_may_approve_at_once(tenant: Tenant) -> None:
    made = add_person(organization=tenant.organization, email="new@example.com", role=Role.OPERATOR)
    tenant.people["new"] = made.user
    assert outcome(tenant, "new", ask(tenant, who="alice")) == (200, "")


def test_after_a_password_reset_a_person_approves_nothing_for_24_hours(tenant: Tenant) -> None:
    now = clock.now()
    User.objects.filter(pk=tenant.people["carol"].pk).update(password_reset_at=now)
    approval = ask(tenant, who="bob")
    refused = vote(tenant, "carol", approval)
    assert (refused.status_code, refused.json()["code"]) == REFUSED
    assert refused.json()["may_approve_at"] == clock.rfc3339(now + 24 * HOUR)
    with time_machine.travel(now + 24 * HOUR, tick=False):
        second = ask(tenant, tenant.staging, "b:drop", who="alice")
        assert outcome(tenant, "carol", second) == (200, "")


def test_a_request_is_refused_when_only_recently_added_people_could_decide_with_the_earliest_time(
    tenant: Tenant,
) -> None:
    for name in ("bob", "carol"):
        give(tenant, "alice", name, "viewer")
    join(tenant, "alice", "puppet")
    from apps.core.errors import Conflict

    with pytest.raises(Conflict) as refused:
        ask(tenant, who="alice")
    assert refused.value.code == "no_eligible_reviewer"
    assert refused.value.extra["not_yet"] == 1
    joined = Membership.objects.get(user=tenant.people["puppet"])
    assert joined.status == "active"
    earliest = dt.datetime.fromisoformat(str(refused.value.extra["earliest_at"]))
    assert 23 * HOUR < earliest - clock.now() <= 24 * HOUR


def test_the_page_shows_who_joined_when_and_by_whom_and_offers_only_denial(tenant: Tenant) -> None:
    join(tenant, "alice", "puppet")
    approval = ask(tenant, who="alice")
    browser = Client()
    browser.force_login(tenant.people["puppet"])
    shown = browser.get(f"/admin/approvals/approval/{approval.pk}/change/")
    assert shown.status_code == 200, shown
    page = shown.content.decode()
    assert "Given a role in the last 24 hours" in page
    words = " ".join(re.sub(r"<[^>]+>", "", page).split())
    assert re.search(r"Puppet: Operator, since 2\d{3}-\d\d-\d\d \d\d:\d\d(:\d\d)? UTC, by Alice", words)
    assert 'value="deny"' in page
    assert 'value="approve"' not in page
    assert "You can approve it after" in page
    body = {"decision": "approve", "shown_digest": approval.shown_digest, "comment": ""}
    refused = browser.post(f"/admin/approvals/approval/{approval.pk}/change/", body)
    assert (refused.status_code, b"reviewer_recently_added" in refused.content) == (409, True)


def test_in_dev_with_self_approval_the_requester_is_not_their_own_puppet(tenant: Tenant) -> None:
    path = tenant.path(tenant.dev)
    policy = {"required_approvals": 1, "prevent_self_approval": False}
    assert tenant.caller("alice").patch(path, {"policy": policy}).status_code == 200
    tenant.dev.refresh_from_db()
    join(tenant, "alice", "newcomer", "operator")
    with time_machine.travel(clock.now() + 25 * HOUR, tick=False):
        approval = ask(tenant, tenant.dev, who="newcomer")
        assert outcome(tenant, "newcomer", approval) == (200, "")


# --- the rule itself

P = {name: uuid.uuid5(uuid.NAMESPACE_DNS, name) for name in "ABCDEFQR"}
T0 = dt.datetime(2026, 1, 10, tzinfo=dt.UTC)


def held(
    user: str, by: str | None, hours_ago: float, until: float | None = None, role: str = "operator", **where: bool
) -> HeldRole:
    end = None if until is None else T0 - until * HOUR
    return HeldRole(P[user], where.get("project", False), Role(role), P[by] if by else None, T0 - hours_ago * HOUR, end)


@pytest.mark.parametrize(
    ("roles", "depend"),
    [
        ([], False),
        ([held("R", "Q", 23)], True),
        ([held("R", "Q", 24)], False),
        ([held("Q", "R", 1)], True),
        ([held("R", "A", 1)], False),
        ([held("R", "A", 1), held("A", "Q", 2)], True),
        ([held("R", "A", 1), held("A", "Q", 30)], False),
        ([held("R", "A", 1), held("A", "B", 2), held("B", "Q", 3)], True),
        ([held("R", "A", 1), held("Q", "A", 2)], True),
        ([held("R", "A", 1), held("A", "C", 2), held("Q", "B", 2), held("B", "C", 3)], True),
        ([held("A", "Q", 1), held("A", "R", 1, project=True)], False),
        ([held("R", "A", 1), held("A", "R", 2)], False),
        ([held("R", None, 1)], False),
        # an older right on the organization bears them, the new role on the project or not
        ([held("R", None, 100), held("R", "Q", 1, project=True)], False),
        # but not where a viewer's role on the project stood in its way
        ([held("R", None, 100), held("R", None, 50, 1, "viewer", project=True), held("R", "Q", 1, project=True)], True),
        ([held("R", None, 100, role="viewer"), held("R", "Q", 1, project=True)], True),
        # from one operating role to another without a gap is no new right
        ([held("R", None, 100, 1), held("R", "Q", 1, role="org_admin")], False),
        # with a gap: given back by the requester, by another user
        ([held("R", None, 100, 2), held("R", "Q", 1)], True),
        ([held("R", None, 100, 2), held("R", "A", 1), held("A", "Q", 3)], False),
        # a role first granted by the requester stays so, even if another user grants it again
        ([held("R", "Q", 10, 5), held("R", "A", 1)], True),
        # taken away from who was in between
        ([held("R", "A", 5), held("A", "Q", 6, 3)], True),
        # taken away from the requester after asking
        ([held("Q", "R", 6, 0.1)], True),
    ],
)
def test_dependence_between_people(roles: list[HeldRole], depend: bool) -> None:
    request = Request(P["Q"], T0 - HOUR / 2)
    history = RoleHistory(roles)
    assert history.depend(P["R"], request, now=T0) is depend
    moment = history.may_approve_at(P["R"], request, now=T0)
    assert (moment > T0) is depend
    assert not history.depend(P["R"], request, now=moment)
    assert moment - T0 <= 24 * HOUR
    if depend:
        assert history.depend(P["R"], request, now=moment - dt.timedelta(seconds=1))


def test_a_role_given_back_that_was_first_held_after_the_request_is_a_new_one() -> None:
    roles: list[Any] = [held("R", "B", 5, 3), held("R", "A", 1), held("A", "Q", 8)]
    assert RoleHistory(roles).depend(P["R"], Request(P["Q"], T0 - 6 * HOUR), now=T0)
    assert not RoleHistory(roles).depend(P["R"], Request(P["Q"], T0 - 4 * HOUR), now=T0)


def test_any_number_of_recent_members_needs_few_lookups_each(monkeypatch: pytest.MonkeyPatch) -> None:
    people = [uuid.UUID(int=number + 1) for number in range(200)]
    history = RoleHistory(
        HeldRole(user=person, on_project=False, role=Role.OPERATOR, by=people[0], at=T0 - number * HOUR / 10)
        for number, person in enumerate(people)
        if number
    )
    looks: list[uuid.UUID] = []
    look = RoleHistory.rests_on

    def rests_on(self: RoleHistory, user: uuid.UUID, *rest: Any, **more: Any) -> Any:
        looks.append(user)
        return look(self, user, *rest, **more)

    monkeypatch.setattr(RoleHistory, "rests_on", rests_on)
    request = Request(people[5], T0)
    moments = [history.may_approve_at(person, request, now=T0) for person in people[6:]]
    assert moments == [T0 - number * HOUR / 10 + 24 * HOUR for number in range(6, 200)]
    assert len(looks) <= 10 * len(moments)
