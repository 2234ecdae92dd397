"""Promoting, the immutability of versions by every route, diffs and copies."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, connection, models, transaction

from apps.access.roles import Role
from apps.core.ids import new_id
from apps.pipelines.models import FrozenError, PipelineDraft, PipelineVersion
from apps.pipelines.services import PromotionResult, promote_draft
from apps.runtime.spec import compile_spec
from tests.pipelines.helpers import GOOD, OTHER, WRONG, make_draft, make_version, run_jobs
from tests.support import Caller, Tenant, caller_for, give_role, in_threads, make_person

pytestmark = pytest.mark.django_db


@pytest.fixture
def bob(tenant: Tenant) -> Caller:
    return tenant.caller("bob")


def test_promoting_freezes_the_canonical_text_under_the_next_number(tenant: Tenant, bob: Caller) -> None:
    draft = make_draft(bob, tenant, "# a note\r\n" + GOOD + "future.key=1\r\n").json()
    answer = bob.post(f"{tenant.path()}/drafts/{draft['id']}/promote", {})
    assert answer.status_code == 201
    version = answer.json()
    done = compile_spec(GOOD)
    assert version["number"] == 1
    assert (version["name"], version["spec_hash"]) == ("redact-orders", done.spec_hash)
    assert (version["target"], version["capabilities"]) == ("SingleRing", [])
    assert (version["draft_id"], version["copied_from"]) == (draft["id"], None)
    assert version["created_by"] == str(tenant.people["bob"].pk)
    spec = bob.get(f"{tenant.path()}/versions/{version['id']}/spec", accept="text/plain")
    assert spec.content.decode() == done.canonical
    assert spec["Content-Type"] == "text/plain; charset=us-ascii"
    assert spec["Content-Disposition"] == 'attachment; filename="redact-orders-v1.kv"'
    assert make_version(bob, tenant, OTHER)["number"] == 2
    assert make_version(bob, tenant, OTHER, env=tenant.prod)["number"] == 1


def test_text_that_is_a_version_already_gives_that_version(tenant: Tenant, bob: Caller) -> None:
    first = make_version(bob, tenant)
    draft = make_draft(bob, tenant, "# the same\n" + GOOD).json()
    answer = bob.post(f"{tenant.path()}/drafts/{draft['id']}/promote")
    assert (answer.status_code, answer.json()) == (200, first)


def test_a_spec_with_errors_is_not_promoted_and_the_answer_states_why(tenant: Tenant, bob: Caller) -> None:
    draft = make_draft(bob, tenant, WRONG).json()
    answer = bob.post(f"{tenant.path()}/drafts/{draft['id']}/promote")
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "invalid_spec"
    assert problem["diagnostics"] == [item.as_dict() for item in compile_spec(WRONG).diagnostics]
    assert [item["code"] for item in problem["errors"]] == ["no_equals", "unknown_op"]
    assert not PipelineVersion.objects.exists()


def test_promoting_trusts_the_text_and_not_the_stored_status(tenant: Tenant, bob: Caller) -> None:
    draft = make_draft(bob, tenant, WRONG).json()
    run_jobs()
    path = f"{tenant.path()}/drafts/{draft['id']}"
    PipelineDraft.objects.update(status="valid", spec_hash=compile_spec(GOOD).spec_hash)
    assert bob.post(f"{path}/promote").status_code == 422
    PipelineDraft.objects.update(status="invalid", spec=GOOD)
    assert bob.post(f"{path}/promote").status_code == 201


@pytest.mark.parametrize("body", [{"force": True}, [1]])
def test_promote_preview_take_no_fields(body: Any, tenant: Tenant, bob: Caller) -> None:
    path = f"{tenant.path()}/drafts/{make_draft(bob, tenant).json()['id']}"
    assert bob.post(f"{path}/promote", body).status_code == bob.post(f"{path}/preview", body).status_code == 400


def test_a_preview_is_complete_and_stores_nothing(tenant: Tenant, bob: Caller) -> None:
    make_version(bob, tenant)
    draft = make_draft(bob, tenant, OTHER)
    path = f"{tenant.path()}/drafts/{draft.json()['id']}"
    seen = bob.post(f"{path}/preview").json()
    done = compile_spec(OTHER)
    assert done.plan is not None
    assert (seen["status"], seen["spec_hash"], seen["canonical"]) == ("valid", done.spec_hash, done.canonical)
    assert seen["plan"] == done.plan.as_dict()
    assert seen["against"]["number"] == 1
    assert {item["kind"] for item in seen["diff"]["changes"]} == {"stage_added", "depends_on_changed"}
    assert bob.get(path)["ETag"] == draft["ETag"]
    wrong = make_draft(bob, tenant, WRONG).json()
    seen = bob.post(f"{tenant.path()}/drafts/{wrong['id']}/preview").json()
    assert (seen["status"], seen["plan"], seen["diff"]) == ("invalid", None, None)
    assert len(seen["diagnostics"]) == 2


def test_versions_are_listed_and_read_by_those_who_may_see_them(tenant: Tenant, bob: Caller) -> None:
    one, two = make_version(bob, tenant), make_version(bob, tenant, OTHER)
    path = f"{tenant.path()}/versions"
    vera, charlie = tenant.caller("vera"), tenant.caller("charlie")
    assert vera.get(path).json()["results"] == [two, one]
    assert vera.get(f"{path}?q={one['spec_hash']}").json()["results"] == [one]
    assert vera.get(f"{path}?status=x").status_code == 400
    answer = vera.get(f"{path}/{one['id']}")
    assert answer.json() == one
    assert vera.get(f"{path}/{one['id']}", if_none_match=answer["ETag"]).status_code == 304
    for end in ("", f"/{one['id']}", f"/{one['id']}/spec", f"/{one['id']}/diff"):
        assert charlie.get(path + end).status_code == 404
        assert Caller().get(path + end).status_code == 401
    assert bob.get(f"{tenant.path(tenant.prod)}/versions/{one['id']}").status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_no_method_changes_a_version(method: str, tenant: Tenant) -> None:
    alice = tenant.caller("alice")
    version = make_version(alice, tenant)
    for end in ("", "/spec", "/diff"):
        answer = alice.raw(method, f"{tenant.path()}/versions/{version['id']}{end}", b'{"name":"x"}', HTTP_IF_MATCH="*")
        assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert alice.get(f"{tenant.path()}/versions/{version['id']}").json() == version


def test_no_route_of_the_code_changes_a_version(tenant: Tenant, bob: Caller) -> None:
    make_version(bob, tenant)
    version = PipelineVersion.objects.get()
    version.name = "other"
    rows = PipelineVersion.objects.all()
    for change in (
        version.save,
        lambda: version.save(update_fields=["name"]),
        lambda: rows.update(name="other"),
        lambda: rows.bulk_update([version], ["name"]),
        lambda: rows.bulk_create([version], update_conflicts=True, update_fields=["name"], unique_fields=["id"]),
        lambda: rows.update_or_create(pk=version.pk, defaults={"name": "other"}),
    ):
        with pytest.raises(FrozenError):
            change()
    assert PipelineVersion.objects.get().name == "redact-orders"


@pytest.mark.postgres
@pytest.mark.parametrize(
    "column", ["name", "spec", "number", "spec_hash", "capabilities", "environment_id", "draft_id"]
)
def test_no_sql_changes_a_version(column: str, tenant: Tenant, bob: Caller) -> None:
    make_version(bob, tenant)
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"UPDATE pipelines_pipelineversion SET {column} = {column}")
    with pytest.raises(DatabaseError), transaction.atomic():
        models.QuerySet(PipelineVersion).update(number=7)


def test_the_database_refuses_a_second_number_and_a_second_hash(tenant: Tenant, bob: Caller) -> None:
    make_version(bob, tenant)
    there = PipelineVersion.objects.get()
    for change in ({"number": 2}, {"spec_hash": "sha256:" + "0" * 64}, {"number": 0, "spec_hash": "sha256:1"},
                   {"number": 3, "spec_hash": "1"}):  # fmt: skip
        values = {field.attname: getattr(there, field.attname) for field in PipelineVersion._meta.concrete_fields}
        with pytest.raises(IntegrityError), transaction.atomic():
            PipelineVersion.objects.create(**{**values, "id": new_id(), **change})


def test_a_diff_names_what_changed_and_shows_every_line(tenant: Tenant, bob: Caller) -> None:
    one, two = make_version(bob, tenant), make_version(bob, tenant, OTHER)
    path = f"{tenant.path()}/versions"
    seen = bob.get(f"{path}/{two['id']}/diff?against={one['id']}").json()
    assert (seen["version"], seen["against"]) == (two, one)
    assert [(item["kind"], item["subject"]) for item in seen["changes"]] == [
        ("stage_added", "check"),
        ("depends_on_changed", "redact"),
    ]
    new = [line["text"] for line in seen["lines"] if line["tag"] != "-"]
    old = [line["text"] for line in seen["lines"] if line["tag"] != "+"]
    assert "\n".join(new) + "\n" == compile_spec(OTHER).canonical
    assert "\n".join(old) + "\n" == compile_spec(GOOD).canonical
    assert bob.get(f"{path}/{two['id']}/diff").json() == seen
    assert bob.get(f"{path}/{two['id']}/diff?against={two['id']}").json()["changes"] == []
    first = bob.get(f"{path}/{one['id']}/diff").json()
    assert first["against"] is None
    assert {line["tag"] for line in first["lines"]} == {"+"}


def test_a_diff_is_against_what_the_caller_may_see(tenant: Tenant, bob: Caller) -> None:
    one = make_version(bob, tenant)
    theirs = make_version(tenant.caller("charlie"), tenant, OTHER, env=tenant.other_environment)
    path = f"{tenant.path()}/versions/{one['id']}/diff"
    assert bob.get(f"{path}?against={theirs['id']}").status_code == 404
    assert bob.get(f"{path}?against={uuid.uuid4()}").status_code == 404
    assert bob.get(f"{path}?against=x").status_code == bob.get(f"{path}?odd=1").status_code == 400
    prod = make_version(bob, tenant, OTHER, env=tenant.prod)
    assert bob.get(f"{path}?against={prod['id']}").json()["against"] == prod


def test_a_copy_is_the_same_version_and_names_its_source(tenant: Tenant, bob: Caller) -> None:
    make_version(bob, tenant, OTHER, env=tenant.staging)
    one = make_version(bob, tenant)
    path = f"{tenant.path()}/versions/{one['id']}/copy"
    answer = bob.post(path, {"to_environment_id": str(tenant.staging.pk)})
    assert answer.status_code == 201
    copy = answer.json()
    assert (copy["number"], copy["copied_from"], copy["draft_id"]) == (2, one["id"], None)
    assert copy["spec_hash"] == one["spec_hash"]
    assert bob.get(f"{tenant.path(tenant.staging)}/versions/{copy['id']}").json() == copy
    again = bob.post(path, {"to_environment_id": str(tenant.staging.pk)})
    assert (again.status_code, again.json()) == (200, copy)


def test_a_copy_goes_to_a_sibling_that_the_caller_may_operate(tenant: Tenant, bob: Caller) -> None:
    one = make_version(bob, tenant)
    path = f"{tenant.path()}/versions/{one['id']}/copy"
    for where, status, code in (
        (tenant.dev.pk, 422, "not_a_sibling"),
        (tenant.other_environment.pk, 404, "not_found"),
        (uuid.uuid4(), 404, "not_found"),
        ("x", 400, "invalid_input"),
    ):
        answer = bob.post(path, {"to_environment_id": str(where)})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert bob.post(path, {}).status_code == bob.post(path, None).status_code == 400
    assert tenant.caller("vera").post(path, {"to_environment_id": str(tenant.prod.pk)}).status_code == 403
    assert PipelineVersion.objects.count() == 1


def test_a_copy_does_not_leave_the_project(tenant: Tenant) -> None:
    from apps.core.actors import SYSTEM_ACTOR
    from apps.tenancy import services as tenancy

    second = tenancy.create_project(actor=SYSTEM_ACTOR, organization=tenant.organization, name="Second")
    there = tenancy.create_environment(actor=SYSTEM_ACTOR, project=second, name="dev", posture="dev")
    bob = tenant.caller("bob")
    one = make_version(bob, tenant)
    path = f"{tenant.path()}/versions/{one['id']}/copy"
    assert bob.post(path, {"to_environment_id": str(there.pk)}).json()["code"] == "not_a_sibling"
    dana = make_person("dana")
    give_role(dana, Role.OPERATOR, tenant.organization, tenant.project)
    assert caller_for(dana).post(path, {"to_environment_id": str(there.pk)}).status_code == 404


def test_a_version_outlives_its_draft(tenant: Tenant, bob: Caller) -> None:
    version = make_version(bob, tenant)
    bob.delete(f"{tenant.path()}/drafts/{version['draft_id']}", if_match="*")
    assert bob.get(f"{tenant.path()}/versions/{version['id']}").json() == version


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_racing_promotions_number_without_gaps_or_doubles(tenant: Tenant) -> None:
    bob, actor, scope = tenant.caller("bob"), tenant.principal("bob"), tenant.scope()
    texts = [GOOD, GOOD, OTHER, OTHER, GOOD.replace("redact-orders", "third")]
    drafts = [uuid.UUID(make_draft(bob, tenant, text).json()["id"]) for text in texts]
    results = in_threads(*[lambda d=d: promote_draft(actor=actor, scope=scope, draft_id=d) for d in drafts])
    assert all(isinstance(item, PromotionResult) for item in results), results
    assert sum(item.created for item in results) == 3
    assert sorted(PipelineVersion.objects.values_list("number", flat=True)) == [1, 2, 3]
