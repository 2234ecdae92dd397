"""Members and invitations."""

import contextlib
import threading

import pytest

from apps.access.api import members as api
from apps.access.models import Membership, User
from apps.access.principals import SYSTEM, person_principal
from apps.access.roles import Role
from apps.access.services import change_account_state, create_token, members, remove_member
from apps.api.etags import check_if_match
from apps.audit.models import AuditEvent
from apps.core import clock
from apps.core.errors import Conflict, Forbidden, NotFound, PreconditionFailed, ServiceError
from apps.core.ids import new_id
from apps.tenancy import services as tenancy
from apps.tenancy.models import Organization, Project
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import scope_of
from tests.support import PASSWORD, caller_for, give_role, in_threads, make_person

pytestmark = pytest.mark.django_db


def test_inviting_answers_alike_for_known_and_unknown_addresses(tenant):
    path = f"/orgs/{tenant.organization.pk}/members"
    alice = tenant.caller("alice")
    known = alice.post(path, {"email": "charlie@example.com", "role": "viewer"})
    unknown = alice.post(path, {"email": "nobody@example.com", "role": "viewer"})
    assert known.status_code == unknown.status_code == 201
    assert known.json().keys() == unknown.json().keys()
    for answer in (known, unknown):
        assert answer.json()["status"] == "invited"
        assert answer.json()["user_id"] is None


def test_an_invitation_makes_an_account_once(tenant, client):
    made = tenant.caller("alice").post(
        f"/orgs/{tenant.organization.pk}/members", {"email": "Dora@Example.com", "role": "operator"}
    )
    link = made.json()["invitation_url"].removeprefix("http://127.0.0.1:8080")
    page = client.get(link)
    assert page.status_code == 200
    assert b"dora@example.com" in page.content
    weak = client.post(link, {"name": "Dora", "password": "short"})
    assert weak.status_code == 400
    done = client.post(link, {"name": "Dora", "password": PASSWORD})
    assert (done.status_code, done["Location"]) == (302, "/")
    assert client.get("/api/v1/me").json()["email"] == "dora@example.com"
    assert client.get(link).status_code == 404
    member = Membership.objects.get(email="dora@example.com")
    assert (member.status, member.role) == ("active", "operator")


@pytest.mark.parametrize(("who", "status"), [("alice", 201), ("bob", 403), ("vera", 403), ("charlie", 404)])
def test_only_org_admins_invite_to_the_organization(tenant, who, status):
    path = f"/orgs/{tenant.organization.pk}/members"
    assert tenant.caller(who).post(path, {"email": "x@example.com", "role": "viewer"}).status_code == status


def test_project_admins_invite_to_their_project_but_not_as_org_admin(tenant):
    dave = make_person("dave")
    give_role(dave, Role.PROJECT_ADMIN, tenant.organization, tenant.project)
    path = f"/orgs/{tenant.organization.pk}/projects/{tenant.project.pk}/members"
    assert caller_for(dave).post(path, {"email": "x@example.com", "role": "operator"}).status_code == 201
    assert caller_for(dave).post(path, {"email": "y@example.com", "role": "org_admin"}).status_code == 400


def test_a_second_invitation_ends_the_first_link(tenant, client):
    path = f"/orgs/{tenant.organization.pk}/members"
    alice = tenant.caller("alice")
    first, second = (alice.post(path, {"email": "x@example.com", "role": "viewer"}).json() for _ in range(2))
    assert first["id"] == second["id"]
    local = "http://127.0.0.1:8080"
    assert client.get(first["invitation_url"].removeprefix(local)).status_code == 404
    assert client.get(second["invitation_url"].removeprefix(local)).status_code == 200


def test_the_last_org_admin_stays(tenant):
    alice = tenant.caller("alice")
    path = f"/orgs/{tenant.organization.pk}/members"
    me = next(m for m in alice.get(path).json()["results"] if m["email"] == "alice@example.com")
    for answer in (alice.delete(f"{path}/{me['id']}"), alice.put(f"{path}/{me['id']}", {"role": "viewer"})):
        assert (answer.status_code, answer.json()["code"]) == (409, "last_org_admin")


@pytest.mark.postgres
def test_two_admins_who_remove_each_other_leave_one(transactional_db, tenant, monkeypatch):
    give_role(make_person("ada"), Role.ORG_ADMIN, tenant.organization)
    here = Membership.objects.filter(organization=tenant.organization, role=Role.ORG_ADMIN)
    actor, scope, admins = (
        tenant.principal("alice"),
        Scope(tenant.organization),
        list(here.values_list("pk", flat=True)),
    )
    both_have_looked, look = threading.Barrier(2), members._keep_an_admin

    def look_and_wait(scope, row):
        look(scope, row)
        with contextlib.suppress(threading.BrokenBarrierError):
            both_have_looked.wait(0.5)  # the other one has looked by then, or waits for the lock

    monkeypatch.setattr(members, "_keep_an_admin", look_and_wait)
    results = in_threads(*(lambda i=i: remove_member(actor=actor, scope=scope, member_id=i) for i in admins))
    [refused] = [result for result in results if result is not None]
    assert isinstance(refused, Conflict)
    assert refused.code == "last_org_admin"
    assert here.count() == 1


def test_an_admin_who_can_not_sign_in_is_not_the_one_who_stays(tenant):
    ada = make_person("ada")
    give_role(ada, Role.ORG_ADMIN, tenant.organization)
    staff = person_principal(make_person("root", is_superuser=True))
    change_account_state(actor=staff, user_id=ada.pk, active=False)
    give_role(make_person("pia"), Role.PROJECT_ADMIN, tenant.organization, tenant.project)
    Membership.objects.create(organization=tenant.organization, email="new@example.com", role=Role.ORG_ADMIN)
    alice, path = member(tenant, "alice")
    assert alice.delete(path).json()["code"] == "last_org_admin"
    change_account_state(actor=staff, user_id=ada.pk, active=True)
    assert alice.delete(path).status_code == 204


# --- roles and what is refused


def member(tenant, name="vera"):
    alice = tenant.caller("alice")
    path = f"/orgs/{tenant.organization.pk}/members"
    row = next(m for m in alice.get(path).json()["results"] if m["email"] == f"{name}@example.com")
    return alice, f"{path}/{row['id']}"


def test_a_role_is_changed_and_it_is_recorded(tenant):
    alice, path = member(tenant)
    assert tenant.caller("vera").post(f"{tenant.path()}/drafts", {}).status_code == 403
    answer = alice.put(path, {"role": "operator"})
    assert (answer.status_code, answer.json()["role"]) == (200, "operator")
    assert tenant.caller("vera").post(f"{tenant.path()}/drafts", {}).status_code == 400
    event = AuditEvent.objects.get(action="member.role_changed")
    assert (event.actor_name, event.details) == ("Alice", {"from": "viewer", "to": "operator"})
    assert alice.put(path, {"role": "operator"}).status_code == 200
    assert AuditEvent.objects.filter(action="member.role_changed").count() == 1


def test_what_was_read_of_a_member_can_be_sent_back(tenant):
    alice, path = member(tenant)
    shown = alice.get(path).json()
    answer = alice.put(path, shown)
    assert (answer.status_code, answer.json()) == (200, shown)
    assert alice.put(path, {**shown, "role": "operator"}).json() == {**shown, "role": "operator"}
    for change in ({"email": "other@example.com"}, {"user_id": None}, {"status": "invited"}):
        answer = alice.put(path, {**shown, **change})
        assert (answer.status_code, [e["code"] for e in answer.json()["errors"]]) == (400, ["read_only"]), change
    assert [e["code"] for e in alice.put(path, {"role": "viewer", "colour": 1}).json()["errors"]] == ["unknown_field"]
    assert alice.put(path, []).status_code == 400
    assert AuditEvent.objects.filter(action="member.role_changed").count() == 1


def test_a_role_on_an_old_version_is_412(tenant):
    alice, path = member(tenant)
    old = alice.get(path)["ETag"]
    assert alice.put(path, {"role": "operator"}, if_match=old).status_code == 200
    answer = alice.put(path, {"role": "viewer"}, if_match=old)
    assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed")
    with pytest.raises(PreconditionFailed):  # as when it changes between the look and the lock
        members.change_role(
            actor=tenant.principal("alice"),
            scope=Scope(tenant.organization),
            member_id=path.rpartition("/")[2],
            role="viewer",
            expected_rev=1,
        )


def test_in_an_organization_that_was_deleted_meanwhile_nothing_changes(tenant):
    _, path = member(tenant)
    actor, scope = tenant.principal("alice"), Scope(tenant.organization)
    pk = path.rpartition("/")[2]
    Organization.objects.filter(pk=tenant.organization.pk).update(deleted_at=clock.now())
    before = list(Membership.objects.order_by("pk").values())
    for attempt in (
        lambda: members.invite(actor=actor, scope=scope, email="new@example.com", role="viewer"),
        lambda: members.change_role(actor=actor, scope=scope, member_id=pk, role="operator"),
        lambda: members.remove_member(actor=actor, scope=scope, member_id=pk),
    ):
        with pytest.raises(NotFound):
            attempt()
    assert list(Membership.objects.order_by("pk").values()) == before


def test_in_a_project_that_was_deleted_meanwhile_nothing_changes(tenant):
    actor, scope = tenant.principal("alice"), Scope(tenant.organization, tenant.project)
    pk = give_role(tenant.people["vera"], Role.VIEWER, tenant.organization, tenant.project).pk
    deleted = tenancy.delete_node(actor=actor.ref, scope=scope_of(tenant.project), force=True)
    assert deleted
    assert not Project.objects.filter(pk=tenant.project.pk).exists()
    before = list(Membership.objects.order_by("pk").values())
    for attempt in (
        lambda: members.invite(actor=actor, scope=scope, email="new@example.com", role="viewer"),
        lambda: members.change_role(actor=actor, scope=scope, member_id=pk, role="operator"),
        lambda: members.remove_member(actor=actor, scope=scope, member_id=pk),
    ):
        with pytest.raises(NotFound):
            attempt()
    assert list(Membership.objects.order_by("pk").values()) == before


def test_a_member_who_changes_between_the_look_and_the_lock_is_not_removed_by_if_match(tenant, monkeypatch):
    alice, path = member(tenant)
    seen = alice.get(path)["ETag"]

    def change_after_the_look(*args, **named):
        check_if_match(*args, **named)
        Membership.objects.filter(pk=path.rpartition("/")[2]).update(rev=2)

    monkeypatch.setattr(api, "check_if_match", change_after_the_look)
    answer = alice.delete(path, if_match=seen)
    assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed")
    monkeypatch.undo()
    assert alice.delete(path, if_match=alice.get(path)["ETag"]).status_code == 204


def test_a_member_is_removed_and_it_is_recorded(tenant):
    alice, path = member(tenant)
    assert alice.delete(path).status_code == 204
    assert alice.get(path).status_code == 404
    assert tenant.caller("vera").get(f"/orgs/{tenant.organization.pk}").status_code == 404
    assert AuditEvent.objects.get(action="member.removed").details == {"email": "vera@example.com", "role": "viewer"}


def test_an_invitation_is_cancelled(tenant, client):
    alice = tenant.caller("alice")
    path = f"/orgs/{tenant.organization.pk}/members"
    made = alice.post(path, {"email": "dora@example.com", "role": "viewer"}).json()
    assert alice.put(f"{path}/{made['id']}", {"role": "operator"}).json()["role"] == "operator"
    assert alice.delete(f"{path}/{made['id']}").status_code == 204
    assert client.get(made["invitation_url"].removeprefix("http://127.0.0.1:8080")).status_code == 404


@pytest.mark.parametrize("method", ["get", "put", "delete"])
def test_an_unknown_member_and_one_of_another_organization_are_404(tenant, method):
    foreign = Membership.objects.get(organization=tenant.other_organization).pk
    for which in (foreign, new_id()):
        call = getattr(tenant.caller("alice"), method)
        arguments = [{"role": "viewer"}] if method == "put" else []
        assert call(f"/orgs/{tenant.organization.pk}/members/{which}", *arguments).status_code == 404


def test_inviting_a_member_is_409(tenant):
    answer = tenant.caller("alice").post(
        f"/orgs/{tenant.organization.pk}/members", {"email": " Vera@EXAMPLE.com", "role": "operator"}
    )
    assert (answer.status_code, answer.json()["code"]) == (409, "member_exists")


@pytest.mark.parametrize("body", [{"role": "owner"}, {"role": ""}, {"role": 5}, {}, {"role": "viewer", "more": 1}])
def test_a_role_that_is_none_is_400(tenant, body):
    alice, path = member(tenant)
    for answer in (alice.put(path, body), alice.post(path.rpartition("/")[0], {"email": "new@example.com", **body})):
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")
    assert Membership.objects.get(user=tenant.people["vera"]).role == "viewer"


def test_a_role_that_a_project_does_not_have_is_refused_with_a_pointer(tenant):
    answer = tenant.caller("alice").post(
        f"/orgs/{tenant.organization.pk}/projects/{tenant.project.pk}/members",
        {"email": "new@example.com", "role": "org_admin"},
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")
    [error] = answer.json()["errors"]
    assert (error["pointer"], error["code"]) == ("/role", "invalid_choice")


@pytest.mark.parametrize(
    "email",
    [
        "",
        "no address",
        "a@",
        "@b.de",
        "a@b.de\nBcc: c@d.de",
        "x" * 250 + "@b.de",
        f"a@{'ü' * 60}.de",
        "a@xn--ü.de",
        "a@straße.de",
    ],
)
def test_an_invalid_address_is_400(tenant, email):
    answer = tenant.caller("alice").post(
        f"/orgs/{tenant.organization.pk}/members", {"email": email, "role": "operator"}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")


@pytest.mark.parametrize("email", ["a@bücher.de", "a@xn--strae-oqa.de"])
def test_an_international_domain_is_an_address(tenant, email):
    answer = tenant.caller("alice").post(
        f"/orgs/{tenant.organization.pk}/members", {"email": email, "role": "operator"}
    )
    assert (answer.status_code, answer.json()["email"]) == (201, email)


def test_a_personal_token_needs_a_person(tenant):
    with pytest.raises(Forbidden) as refused:
        create_token(actor=SYSTEM, name="x")
    assert refused.value.code == "person_required"


# --- why a link is refused


def open_link(tenant, email):
    """The token of the shown link of an invitation to Acme."""
    answer = tenant.caller("alice").post(
        f"/orgs/{tenant.organization.pk}/members", {"email": email, "role": "operator"}
    )
    return answer.json()["invitation_url"].rpartition("/")[2]


def code_of(act):
    with pytest.raises(ServiceError) as refused:
        act()
    return refused.value.code


def test_each_refusal_of_a_link_has_its_code_and_leaves_it_open(tenant):
    bob = tenant.people["bob"]
    token = open_link(tenant, "charlie@example.com")
    assert code_of(lambda: members.join(user=bob, token=token)) == "other_account"
    assert code_of(lambda: members.accept_as_new_person(token=token, encoded="!")) == "account_exists"
    planted = make_person("planted", address_proved_at=None)
    shown = open_link(tenant, "planted@example.com")
    assert code_of(lambda: members.join(user=planted, token=shown)) == "address_not_proved"
    assert code_of(lambda: members.accept_as_new_person(token=shown, encoded="!")) == "account_exists"
    row = Membership.objects.get(email="planted@example.com")
    mailed = members.OpenInvitation(row, mailed=True)
    assert members.why_not_join(planted, mailed).code == "password_needed"
    assert code_of(lambda: members.join(user=bob, token="no such token")) == "not_found"
    assert set(Membership.objects.filter(status="invited").values_list("user", flat=True)) == {None}


@pytest.mark.parametrize("meanwhile", ["it is cancelled", "it is accepted", "the organization is deleted"])
def test_an_invitation_that_ends_while_its_link_is_used_is_not_found(tenant, monkeypatch, meanwhile):
    token = open_link(tenant, "dora@example.com")
    row = Membership.objects.get(email="dora@example.com")
    lock = members.lock_organizations_of

    def ended_first(*given):
        if meanwhile == "it is cancelled":
            Membership.objects.filter(pk=row.pk).delete()
        elif meanwhile == "it is accepted":
            Membership.objects.filter(pk=row.pk).update(invitation_sha256=None)
        else:
            Organization.objects.filter(pk=tenant.organization.pk).update(deleted_at=clock.now())
        return lock(*given)

    monkeypatch.setattr(members, "lock_organizations_of", ended_first)
    with pytest.raises(NotFound):
        members.accept_as_new_person(token=token, encoded="!")
    assert not User.objects.filter(email="dora@example.com").exists()


def test_an_account_that_is_deactivated_while_it_joins_by_a_link_joins_nothing(tenant):
    token, charlie = open_link(tenant, "charlie@example.com"), tenant.people["charlie"]
    User.objects.filter(pk=charlie.pk).update(is_active=False)
    with pytest.raises(NotFound):
        members.join(user=charlie, token=token)
    assert Membership.objects.get(organization=tenant.organization, email=charlie.email).status == "invited"


@pytest.mark.parametrize("meanwhile", ["it is cancelled", "the account is deactivated", "the organization is deleted"])
def test_an_invitation_without_its_link_that_ends_meanwhile_is_not_found(tenant, monkeypatch, meanwhile):
    open_link(tenant, "charlie@example.com")
    row, charlie = Membership.objects.get(email="charlie@example.com", status="invited"), tenant.people["charlie"]
    lock = members.lock_organization

    def ended_first(organization_id):
        if meanwhile == "it is cancelled":
            Membership.objects.filter(pk=row.pk).delete()
        elif meanwhile == "the account is deactivated":
            User.objects.filter(pk=charlie.pk).update(is_active=False)
        else:
            Organization.objects.filter(pk=tenant.organization.pk).update(deleted_at=clock.now())
        return lock(organization_id)

    monkeypatch.setattr(members, "lock_organization", ended_first)
    with pytest.raises(NotFound):
        members.join_without_link(user=charlie, membership_id=row.pk)
    assert not Membership.objects.filter(pk=row.pk, status="active").exists()
