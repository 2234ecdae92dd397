"""The tree over HTTP: making, reading, renaming, and who may."""

import pytest

from apps.api.etags import check_if_match
from apps.audit.models import AuditEvent
from apps.core.actors import SYSTEM_ACTOR
from apps.core.errors import BadRequest, NotFound
from apps.tenancy import api, services
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.selectors import scope_of
from tests.support import Caller, in_threads, make_person


def test_the_creator_of_an_organization_is_its_admin(db):
    from tests.support import caller_for

    dora = caller_for(make_person("dora"))
    made = dora.post("/orgs", {"name": "Dora's Döner & Co"})
    assert made.status_code == 201
    assert made.json()["slug"] == "dora-s-doner-co"
    assert [r["role"] for r in dora.get("/me").json()["roles"]] == ["org_admin"]


def test_slugs_are_derived_made_unique_or_refused(tenant):
    alice = tenant.caller("alice")
    projects = f"/orgs/{tenant.organization.pk}/projects"
    assert alice.post(projects, {"name": "Orders"}).json()["slug"] == "orders-2"
    taken = alice.post(projects, {"name": "Other", "slug": "orders"})
    assert (taken.status_code, taken.json()["code"]) == (409, "slug_taken")
    for slug in ("Orders", "a b", "", "x" * 64, "ä"):
        assert alice.post(projects, {"name": "Other", "slug": slug}).status_code == 400


NEW = {"name": "New", "posture": "dev"}


@pytest.mark.parametrize(
    ("change", "pointer", "code"),
    [
        ({"name": ""}, "/name", "invalid"),
        ({"name": "x" * 201}, "/name", "invalid"),
        ({"name": "a\nb"}, "/name", "invalid"),
        ({"name": "\u200b"}, "/name", "invalid"),
        ({"slug": "No Slug"}, "/slug", "invalid"),
        ({"slug": ""}, "/slug", "invalid"),
        ({"slug": "x" * 64}, "/slug", "invalid"),
        ({"posture": "test"}, "/posture", "invalid_choice"),
        ({"posture": ""}, "/posture", "invalid_choice"),
        ({"max_in_flight_deployments": 0}, "/max_in_flight_deployments", "out_of_range"),
        ({"max_in_flight_deployments": 1001}, "/max_in_flight_deployments", "out_of_range"),
        ({"retention_days": {"snapshot": 0}}, "/retention_days/snapshot", "invalid"),
        ({"retention_days": {"snapshot": 3651}}, "/retention_days/snapshot", "invalid"),
        ({"retention_days": {"snapshot": True}}, "/retention_days/snapshot", "invalid"),
        ({"retention_days": {"snapshot": "30"}}, "/retention_days/snapshot", "invalid"),
        ({"retention_days": {"videos": 30}}, "/retention_days/videos", "invalid"),
        ({"enrollments_per_minute": 0}, "/enrollments_per_minute", "out_of_range"),
        ({"enrollments_per_minute": 601}, "/enrollments_per_minute", "out_of_range"),
        ({"agent_upgrade_percent": -1}, "/agent_upgrade_percent", "out_of_range"),
        ({"agent_upgrade_percent": 101}, "/agent_upgrade_percent", "out_of_range"),
        ({"policy": {"required_approvals": 21}}, "/policy/required_approvals", "invalid"),
    ],
)
def test_each_limit_of_an_environment_is_refused_at_its_field_when_it_is_made_and_changed(
    tenant, change, pointer, code
):
    actor, project = tenant.principal("alice").ref, tenant.project
    attempts = [lambda: services.create_environment(actor=actor, project=project, **{**NEW, **change})]
    if "posture" not in change:
        attempts.append(lambda: services.update_node(actor=actor, node=tenant.dev, **change))
    for attempt in attempts:
        with pytest.raises(BadRequest) as refused:
            attempt()
        assert refused.value.code == "invalid_input"
        assert [(error.pointer, error.code) for error in refused.value.errors] == [(pointer, code)]
    assert project.environments.count() == 3
    assert Environment.objects.get(pk=tenant.dev.pk).rev == tenant.dev.rev


def test_the_limits_of_an_environment_hold_at_the_api(tenant):
    alice, environments = tenant.caller("alice"), tenant.path().rpartition("/")[0]
    for change in ({"posture": "test"}, {"max_in_flight_deployments": 0}, {"retention_days": {"snapshot": 0}}):
        answer = alice.post(environments, {**NEW, **change})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")
    for change in (
        {"max_in_flight_deployments": 1},
        {"max_in_flight_deployments": 1000},
        {"enrollments_per_minute": 1},
        {"enrollments_per_minute": 600},
        {"agent_upgrade_percent": 100},
    ):
        assert alice.patch(tenant.path(), change).status_code == 200


@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("policy", "require_comment_on_deny"),
        ("policy", "required_approvals"),
        ("policy", "approval_window_hours"),
        ("retention_days", "snapshot"),
        ("max_in_flight_deployments", None),
        ("agent_upgrade_percent", None),
        ("enrollments_per_minute", None),
    ],
)
@pytest.mark.parametrize("method", ["patch", "put"])
def test_a_value_of_another_type_that_python_takes_for_the_stored_one_is_refused(tenant, member, name, method):
    """1, 1.0 and true are equal in Python."""
    alice, path = tenant.caller("alice"), tenant.path()
    limits = {**dict.fromkeys(services.LIMITS, 1), "retention_days": {"snapshot": 1}}
    policy = {"required_approvals": 1, "approval_window_hours": 1}
    assert alice.patch(path, {**limits, "policy": policy}).status_code == 200
    before = alice.get(path).json()
    stored = before[member] if name is None else before[member][name]
    for value in {int: (True, 1.0), bool: (1, 1.0)}[type(stored)]:
        assert value == stored
        change = {member: value} if name is None else {member: {**before[member], name: value}}
        answer = getattr(alice, method)(path, change if method == "patch" else {**before, **change})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input"), value
        assert [e["pointer"] for e in answer.json()["errors"]] == ["/" + "/".join(filter(None, (member, name)))]
        assert alice.get(path).json() == before
    assert alice.put(path, before).json() == before


def test_null_in_a_patch_restores_the_defaults_of_an_object_and_is_refused_for_any_other_member(tenant):
    alice, path = tenant.caller("alice"), tenant.path(tenant.staging)
    usual = alice.get(path).json()
    changes = {"policy": {"approval_window_hours": 1, "credential_ttl_hours": 1}, "retention_days": {"snapshot": 1}}
    for member, change in changes.items():
        for undo in (None, dict.fromkeys(change)):
            assert alice.patch(path, {member: change}).json()[member] == {**usual[member], **change}
            assert alice.patch(path, {member: undo}).json()[member] == usual[member]
    before = alice.get(path).json()
    assert before["retention_days"] == services.DEFAULT_RETENTION_DAYS
    for name, code in (
        ("name", "null"),
        ("slug", "null"),
        ("posture", "null"),
        ("max_in_flight_deployments", "null"),
        ("agent_upgrade_percent", "null"),
        ("enrollments_per_minute", "null"),
        ("colour", "unknown_field"),
    ):
        answer = alice.patch(path, {name: None})
        assert answer.status_code == 400, name
        assert [(e["pointer"], e["code"]) for e in answer.json()["errors"]] == [(f"/{name}", code)]
    assert alice.get(path).json() == before


def test_a_node_that_changes_between_the_look_and_the_lock_is_not_deleted_by_if_match(tenant, monkeypatch):
    alice, path = tenant.caller("alice"), tenant.path()
    seen = alice.get(path)["ETag"]

    def change_after_the_look(*args, **named):
        check_if_match(*args, **named)
        services.update_node(actor=SYSTEM_ACTOR, node=tenant.dev, name="Changed")

    monkeypatch.setattr(api, "check_if_match", change_after_the_look)
    answer = alice.delete(path, if_match=seen)
    assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed")
    monkeypatch.undo()
    assert alice.get(path).json()["name"] == "Changed"
    assert alice.delete(path, if_match=alice.get(path)["ETag"]).status_code == 204


def test_a_slug_that_is_taken_is_refused_on_renaming_too(tenant):
    alice, org = tenant.caller("alice"), f"/orgs/{tenant.organization.pk}"
    assert alice.post(f"{org}/projects", {"name": "Other"}).status_code == 201
    other = Project.objects.get(name="Other")
    for path, slug in (
        (org, "elsewhere"),
        (f"{org}/projects/{other.pk}", "orders"),
        (tenant.path(tenant.staging), "dev"),
    ):
        before = alice.get(path).json()
        answer = alice.patch(path, {"slug": slug})
        assert (answer.status_code, answer.json()["code"]) == (409, "slug_taken")
        assert [(e["pointer"], e["code"]) for e in answer.json()["errors"]] == [("/slug", "slug_taken")]
        assert alice.get(path).json() == before


def test_below_what_was_deleted_meanwhile_nothing_is_made_or_changed(tenant):
    """Each was read before its deletion."""
    actor, organization, project, environment = SYSTEM_ACTOR, tenant.organization, tenant.project, tenant.dev
    assert services.delete_node(actor=actor, scope=scope_of(organization), force=True) in (True, False)
    for attempt in (
        lambda: services.create_project(actor=actor, organization=organization, name="New"),
        lambda: services.create_environment(actor=actor, project=project, **NEW),
        lambda: services.update_node(actor=actor, node=environment, name="New"),
        lambda: services.update_node(actor=actor, node=project, name="New"),
        lambda: services.delete_node(actor=actor, scope=scope_of(organization)),
    ):
        with pytest.raises(NotFound):
            attempt()
    assert not Project.objects.filter(name="New").exists()


@pytest.mark.parametrize(("who", "status"), [("alice", 200), ("bob", 200), ("vera", 200), ("charlie", 404)])
def test_members_see_the_tree_and_outsiders_do_not_know_it_exists(tenant, who, status):
    org = f"/orgs/{tenant.organization.pk}"
    caller = tenant.caller(who)
    for path in (org, f"{org}/projects", f"{org}/projects/{tenant.project.pk}", tenant.path()):
        assert caller.get(path).status_code == status
    assert caller.get(f"/orgs/{tenant.other_organization.pk}").status_code == (200 if who == "charlie" else 404)


def test_an_id_under_the_wrong_parent_is_the_same_404_as_one_never_given_out(tenant):
    alice = tenant.caller("alice")
    crossed = f"/orgs/{tenant.organization.pk}/projects/{tenant.project.pk}/environments/{tenant.other_environment.pk}"
    never = crossed.replace(str(tenant.other_environment.pk), "01890000-0000-7000-8000-000000000000")
    bodies = [alice.get(p).json() for p in (crossed, never)]
    for body in bodies:
        body.pop("instance"), body.pop("request_id")
    assert bodies[0] == bodies[1]
    assert bodies[0]["status"] == 404


@pytest.mark.parametrize(("who", "status"), [("alice", 200), ("bob", 403), ("vera", 403), ("charlie", 404)])
def test_settings_are_changed_by_managers_only(tenant, who, status):
    answer = tenant.caller(who).patch(tenant.path(), {"max_in_flight_deployments": 2})
    assert answer.status_code == status
    assert Environment.objects.get(pk=tenant.dev.pk).max_in_flight_deployments == (2 if status == 200 else 4)


def test_posture_is_fixed_and_read_only_fields_stay(tenant):
    alice = tenant.caller("alice")
    body = alice.get(tenant.path()).json()
    fixed = alice.patch(tenant.path(), {"posture": "prod"})
    assert (fixed.status_code, fixed.json()["code"]) == (409, "posture_fixed")
    assert alice.put(tenant.path(), body).status_code == 200
    wrong = alice.put(tenant.path(), {**body, "id": str(tenant.prod.pk)})
    assert wrong.json()["errors"][0] == {"pointer": "/id", "code": "read_only", "detail": "This field can't be set."}


def test_conditional_requests(tenant):
    alice = tenant.caller("alice")
    tag = alice.get(tenant.path())["ETag"]
    assert alice.get(tenant.path(), if_none_match=tag).status_code == 304
    assert alice.patch(tenant.path(), {"name": "Renamed"}, if_match=tag).status_code == 200
    assert alice.patch(tenant.path(), {"name": "Again"}, if_match=tag).status_code == 412
    nonsense = alice.patch(tenant.path(), {"name": "Again"}, if_match="nonsense")
    assert (nonsense.status_code, nonsense.json()["code"]) == (400, "bad_etag")


@pytest.mark.postgres
def test_of_two_edits_against_one_version_one_wins(transactional_db, tenant):
    alice = tenant.caller("alice")
    tag = alice.get(tenant.path())["ETag"]
    token = alice.token
    answers = in_threads(
        *(lambda n=n: Caller(token).patch(tenant.path(), {"name": f"n{n}"}, if_match=tag).status_code for n in range(6))
    )
    assert sorted(answers) == [200, 412, 412, 412, 412, 412]


def test_lists_are_keyset_pages_newest_first(tenant):
    alice = tenant.caller("alice")
    path = f"/orgs/{tenant.organization.pk}/projects"
    for n in range(5):
        alice.post(path, {"name": f"P{n}"})
    names, url = [], f"{path}?limit=2"
    while url:
        page = alice.get(url).json()
        names += [row["name"] for row in page["results"]]
        url = page["next"] and page["next"].split("/api/v1")[1]
        back = page["previous"]
    assert names == ["P4", "P3", "P2", "P1", "P0", "Orders"]
    newer = alice.get(back.split("/api/v1")[1]).json()
    assert [row["name"] for row in newer["results"]] == ["P2", "P1"]
    assert alice.get(f"{path}?q=p3").json()["results"][0]["name"] == "P3"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "bad_limit"),
        ("limit=201", "bad_limit"),
        ("limit=x", "bad_limit"),
        ("limit=%C2%B2", "bad_limit"),
        ("limit=%00", "bad_filter"),
        ("limit=1&limit=2", "bad_filter"),
        ("cursor=zzz", "bad_cursor"),
        ("cursor=%F0", "bad_cursor"),
        ("cursor=eAAAAAAAAAAAAAAAAAAAAAA", "bad_cursor"),
        ("colour=red", "unknown_filter"),
        ("created_after=today", "bad_filter"),
    ],
)
def test_a_bad_list_parameter_is_400(tenant, query, code):
    answer = tenant.caller("alice").get(f"/orgs?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert [(e["pointer"], e["code"]) for e in answer.json()["errors"]] == [(f"?{query.split('=')[0]}", code)]


@pytest.mark.parametrize("level", ["organization", "project", "environment"])
def test_a_deleted_node_is_404_to_everyone_and_frees_its_slug(tenant, level):
    alice = tenant.caller("alice")
    org = f"/orgs/{tenant.organization.pk}"
    path = {"organization": org, "project": f"{org}/projects/{tenant.project.pk}", "environment": tenant.path()}[level]
    assert alice.delete(path).status_code == 204
    assert AuditEvent.objects.get(action=f"{level}.deleted").details["forced"] is False
    assert alice.get(path).status_code == 404
    assert alice.get(tenant.path()).status_code == 404
    again = {"organization": "/orgs", "project": f"{org}/projects", "environment": tenant.path().rsplit("/", 1)[0]}[
        level
    ]
    body = {"organization": {"name": "Acme"}, "project": {"name": "Orders"},
            "environment": {"name": "dev", "posture": "dev"}}[level]  # fmt: skip
    made = alice.post(again, body)
    assert made.status_code == 201
    assert made.json()["slug"] == body["name"].lower()


@pytest.mark.parametrize(("who", "status"), [("bob", 403), ("vera", 403), ("charlie", 404)])
def test_only_managers_delete(tenant, who, status):
    assert tenant.caller(who).delete(tenant.path()).status_code == status
    assert Environment.objects.alive().filter(pk=tenant.dev.pk).exists()


@pytest.mark.postgres
def test_of_two_who_take_one_slug_one_gets_it(transactional_db, tenant):
    token = tenant.caller("alice").token
    path = f"/orgs/{tenant.organization.pk}/projects"
    answers = in_threads(*([lambda: Caller(token).post(path, {"name": "Twin", "slug": "twin"}).status_code] * 5))
    assert sorted(answers) == [201, 409, 409, 409, 409]
    assert Project.objects.filter(slug="twin").count() == 1


def test_a_malformed_id_is_404(tenant):
    answer = tenant.caller("alice").get("/orgs/not-a-uuid")
    assert answer.status_code == 404
    assert Organization.objects.count() >= 2
