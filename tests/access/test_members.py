"""Members and invitations."""

import pytest

from apps.access.models import Membership
from apps.access.roles import Role
from tests.support import PASSWORD, give_role, in_threads, make_person


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


def test_a_known_address_joins_with_its_own_password_only(tenant, client):
    made = tenant.caller("alice").post(
        f"/orgs/{tenant.organization.pk}/members", {"email": "charlie@example.com", "role": "operator"}
    )
    link = made.json()["invitation_url"].removeprefix("http://127.0.0.1:8080")
    assert client.post(link, {"password": "something else entirely"}).status_code == 400
    assert client.post(link, {"password": PASSWORD}).status_code == 302


@pytest.mark.parametrize(("who", "status"), [("alice", 201), ("bob", 403), ("vera", 403), ("charlie", 404)])
def test_only_org_admins_invite_to_the_organization(tenant, who, status):
    path = f"/orgs/{tenant.organization.pk}/members"
    assert tenant.caller(who).post(path, {"email": "x@example.com", "role": "viewer"}).status_code == status


def test_project_admins_invite_to_their_project_but_not_as_org_admin(tenant):
    dave = make_person("dave")
    give_role(dave, Role.PROJECT_ADMIN, tenant.organization, tenant.project)
    from tests.support import caller_for

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
def test_two_admins_who_remove_each_other_leave_one(transactional_db, tenant):
    give_role(make_person("ada"), Role.ORG_ADMIN, tenant.organization)
    alice = tenant.caller("alice")
    path = f"/orgs/{tenant.organization.pk}/members"
    admins = [m["id"] for m in alice.get(path).json()["results"] if m["role"] == "org_admin"]
    from apps.access.services import remove_member
    from apps.tenancy.scope import Scope

    actor, scope = tenant.principal("alice"), Scope(tenant.organization)
    in_threads(*(lambda i=i: remove_member(actor=actor, scope=scope, member_id=i) for i in admins))
    left = Membership.objects.filter(organization=tenant.organization, role=Role.ORG_ADMIN)
    assert left.count() == 1
