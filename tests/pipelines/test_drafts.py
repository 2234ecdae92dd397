"""Drafts over HTTP: any text is stored, concurrent edits are not overwritten, and the result of ingestion is shown."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from apps.audit.models import AuditEvent
from apps.audit.services import verify
from apps.core.errors import PreconditionFailed
from apps.jobs.models import Job, JobStatus
from apps.jobs.registry import JobRun
from apps.pipelines.jobs import run_ingest
from apps.pipelines.models import PipelineDraft
from apps.pipelines.services import delete_draft, update_draft
from apps.runtime.spec import compile_spec
from apps.tenancy import services as tenancy
from tests.pipelines.helpers import GOOD, OTHER, WRONG, make_draft, run_jobs
from tests.support import Caller, Tenant, in_threads

pytestmark = pytest.mark.django_db


@pytest.fixture
def bob(tenant: Tenant) -> Caller:
    return tenant.caller("bob")


def test_a_new_draft_is_pending_until_its_text_was_read(tenant: Tenant, bob: Caller) -> None:
    answer = make_draft(bob, tenant)
    assert answer["ETag"] == '"1.0"'
    draft = answer.json()
    assert (draft["status"], draft["spec_hash"], draft["diagnostics"]) == ("pending", None, [])
    assert draft["spec"] == GOOD
    assert run_jobs() == 1
    answer = bob.get(f"{tenant.path()}/drafts/{draft['id']}")
    assert answer["ETag"] == '"1.1"'
    found = answer.json()
    assert (found["status"], found["target"], found["capabilities"]) == ("valid", "SingleRing", [])
    assert found["spec_hash"] == compile_spec(GOOD).spec_hash


def test_a_wrong_spec_is_kept_with_all_its_diagnostics(tenant: Tenant, bob: Caller) -> None:
    draft = make_draft(bob, tenant, WRONG).json()
    run_jobs()
    found = bob.get(f"{tenant.path()}/drafts/{draft['id']}").json()
    assert (found["status"], found["spec_hash"]) == ("invalid", None)
    assert found["diagnostics"] == [item.as_dict() for item in compile_spec(WRONG).diagnostics]
    assert [item["code"] for item in found["diagnostics"]] == ["no_equals", "unknown_op"]


@pytest.mark.parametrize("spec", ["", "   \n", "x" * 300_000, "# \u00fc\r\n" + GOOD, "\t\u0001"])
def test_any_text_is_kept_as_it_is(spec: str, tenant: Tenant, bob: Caller) -> None:
    draft = make_draft(bob, tenant, spec).json()
    run_jobs()
    assert bob.get(f"{tenant.path()}/drafts/{draft['id']}").json()["spec"] == spec
    assert Job.objects.get().status == JobStatus.COMPLETED


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({}, "/name", "required"),
        ({"name": "a"}, "/spec", "required"),
        ({"name": "", "spec": ""}, "/name", "blank"),
        ({"name": "a" * 201, "spec": ""}, "/name", "max_length"),
        ({"name": 1, "spec": ""}, "/name", "invalid"),
        ({"name": "a", "spec": None}, "/spec", "null"),
        ({"name": "a", "spec": ["x"]}, "/spec", "invalid"),
        ({"name": "a", "spec": "x" * (1024 * 1024 + 1)}, "/spec", "max_length"),
        ({"name": "a", "spec": "", "status": "valid"}, "/status", "unknown_field"),
    ],
    ids=str,
)
def test_a_body_of_the_wrong_shape_is_refused(
    body: dict[str, Any], pointer: str, code: str, tenant: Tenant, bob: Caller
) -> None:
    answer = bob.post(f"{tenant.path()}/drafts", body)
    assert answer.status_code == 400
    assert (pointer, code) in {(item["pointer"], item["code"]) for item in answer.json()["errors"]}
    assert not PipelineDraft.objects.exists()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"name":"a","name":"b","spec":""}', b'{"name":"\\u0000","spec":""}', b"\xff"]
)
def test_a_body_that_is_no_object_is_refused(body: bytes, tenant: Tenant, bob: Caller) -> None:
    answer = bob.raw("POST", f"{tenant.path()}/drafts", body)
    assert answer.status_code == 400
    assert answer["Content-Type"] == "application/problem+json"


def test_a_huge_body_is_refused(tenant: Tenant, bob: Caller) -> None:
    body = json.dumps({"name": "a", "spec": "x" * (5 * 1024 * 1024)}).encode()
    assert bob.raw("POST", f"{tenant.path()}/drafts", body).status_code == 413


def test_only_those_with_a_role_write_and_only_members_see(tenant: Tenant, bob: Caller) -> None:
    draft = make_draft(bob, tenant).json()
    path = f"{tenant.path()}/drafts"
    one = f"{path}/{draft['id']}"
    vera, charlie, anonymous = tenant.caller("vera"), tenant.caller("charlie"), Caller()
    assert vera.get(one).status_code == vera.get(path).status_code == 200
    new = {"name": "a", "spec": ""}
    for method, where, body in (
        ("post", path, new), ("put", one, new), ("patch", one, new), ("delete", one, None),
        ("post", f"{one}/preview", None), ("post", f"{one}/promote", None),
    ):  # fmt: skip
        arguments = (where,) if method == "delete" else (where, body)
        for caller, status in ((vera, 403), (charlie, 404), (anonymous, 401)):
            answer = getattr(caller, method)(*arguments, if_match="*")
            assert answer.status_code == status, (method, where)
    assert charlie.get(one).status_code == charlie.get(path).status_code == 404
    assert PipelineDraft.objects.get().rev == 1


def test_a_draft_is_not_found_under_another_environment(tenant: Tenant, bob: Caller) -> None:
    draft = make_draft(bob, tenant).json()
    for path in (f"{tenant.path(tenant.prod)}/drafts/{draft['id']}", f"{tenant.path()}/drafts/{uuid.uuid4()}"):
        assert bob.get(path).status_code == 404
        assert bob.post(f"{path}/promote").status_code == 404
        assert bob.patch(path, {"name": "x"}, if_match="*").status_code == 404
        assert bob.delete(path, if_match="*").status_code == 404


def test_an_edit_needs_the_tag_it_was_based_on(tenant: Tenant, bob: Caller) -> None:
    path = f"{tenant.path()}/drafts/{make_draft(bob, tenant).json()['id']}"
    body = {"name": "New", "spec": OTHER}
    for answer in (bob.put(path, body), bob.patch(path, body), bob.delete(path)):
        assert (answer.status_code, answer.json()["code"]) == (428, "precondition_required")
    answer = bob.put(path, body, if_match='"1.0"')
    assert (answer.status_code, answer["ETag"]) == (200, '"2.0"')
    assert (answer.json()["spec"], answer.json()["status"]) == (OTHER, "pending")
    for late in ('"1.0"', 'W/"2.0"', '"3"'):
        assert bob.patch(path, {"name": "Late"}, if_match=late).status_code == 412
        assert bob.delete(path, if_match=late).status_code == 412
    assert bob.patch(path, {"name": "Mine"}, if_match='"1", "2.7"').json()["name"] == "Mine"
    assert bob.patch(path, {}, if_match="*")["ETag"] == '"4.0"'
    assert bob.delete(path, if_match='"4.0"').status_code == 204
    assert bob.get(path).status_code == 404


def test_what_the_system_writes_changes_what_is_read_but_fails_no_edit(tenant: Tenant, bob: Caller) -> None:
    answer = make_draft(bob, tenant)
    path = f"{tenant.path()}/drafts/{answer.json()['id']}"
    assert bob.get(path, if_none_match=answer["ETag"]).status_code == 304
    run_jobs()
    assert bob.get(path, if_none_match=answer["ETag"]).status_code == 200
    assert bob.put(path, answer.json(), if_match=answer["ETag"]).status_code == 200


def test_fields_that_are_not_for_people_are_taken_unchanged_and_refused_changed(tenant: Tenant, bob: Caller) -> None:
    path = f"{tenant.path()}/drafts/{make_draft(bob, tenant, WRONG).json()['id']}"
    run_jobs()
    shown = bob.get(path).json()
    assert bob.put(path, {**shown, "name": "New"}, if_match="*").status_code == 200
    for change in ({"status": "valid"}, {"id": str(uuid.uuid4())}, {"spec_hash": "sha256:1"}, {"rev": 3}):
        answer = bob.put(path, {**bob.get(path).json(), **change}, if_match="*")
        assert answer.status_code == 400
        assert [item["pointer"] for item in answer.json()["errors"]] == [f"/{key}" for key in change]
    run_jobs()
    shown = bob.get(path).json()
    first = shown["diagnostics"][0]
    assert first["line"] == 1
    for line in (True, 1.0):
        diagnostics = [{**first, "line": line}, *shown["diagnostics"][1:]]
        assert bob.put(path, {**shown, "diagnostics": diagnostics}, if_match="*").status_code == 400
    assert bob.put(path, shown, if_match="*").status_code == 200
    assert bob.patch(path, {"status": "valid"}, if_match="*").status_code == 400
    assert bob.patch(path, {"name": None}, if_match="*").status_code == 400
    assert bob.put(path, {"name": "x"}, if_match="*").status_code == 400
    assert bob.put(path, [], if_match="*").status_code == 400


def test_a_wrong_body_is_reported_before_a_missing_tag(tenant: Tenant, bob: Caller) -> None:
    path = f"{tenant.path()}/drafts/{make_draft(bob, tenant).json()['id']}"
    assert bob.put(path, {"nmae": 1}).status_code == 400


def test_lists_are_filtered_and_paged(tenant: Tenant, bob: Caller) -> None:
    made = [
        make_draft(bob, tenant, spec, name=f"Draft {n}").json()["id"] for n, spec in enumerate((GOOD, WRONG, OTHER))
    ]
    run_jobs()
    path = f"{tenant.path()}/drafts"
    assert [item["id"] for item in bob.get(path).json()["results"]] == made[::-1]
    assert [item["id"] for item in bob.get(f"{path}?status=invalid").json()["results"]] == [made[1]]
    assert [item["id"] for item in bob.get(f"{path}?q=draft+2").json()["results"]] == [made[2]]
    page = bob.get(f"{path}?limit=2").json()
    assert len(page["results"]) == 2
    assert page["next"]
    assert bob.get(f"{path}?status=odd").status_code == bob.get(f"{path}?odd=1").status_code == 400
    assert bob.get(f"{tenant.path(tenant.prod)}/drafts").json()["results"] == []


def test_every_write_is_on_record(tenant: Tenant, bob: Caller) -> None:
    draft = make_draft(bob, tenant).json()
    path = f"{tenant.path()}/drafts/{draft['id']}"
    bob.patch(path, {"spec": OTHER}, if_match="*")
    bob.post(f"{path}/promote")
    bob.delete(path, if_match="*")
    actions = (
        AuditEvent.objects.filter(action__regex="^(draft|version)").order_by("seq").values_list("action", flat=True)
    )
    assert list(actions) == ["draft.created", "draft.updated", "version.promoted", "draft.deleted"]
    assert verify(tenant.organization.pk).ok


def test_a_newer_edit_supersedes_the_ingestion_of_an_older_one(tenant: Tenant, bob: Caller) -> None:
    draft = make_draft(bob, tenant, WRONG).json()
    bob.patch(f"{tenant.path()}/drafts/{draft['id']}", {"spec": GOOD}, if_match="*")
    run_jobs()
    found = bob.get(f"{tenant.path()}/drafts/{draft['id']}")
    assert (found.json()["status"], found["ETag"]) == ("valid", '"2.1"')
    assert set(Job.objects.values_list("status", flat=True)) == {JobStatus.COMPLETED}


def _run(job: Job, rev: object) -> JobRun:
    return JobRun(
        job.pk, job.type, job.subject_id, {"rev": rev}, job.organization_id, job.environment_id, 1, uuid.uuid4()
    )


def test_ingestion_of_a_deleted_or_superseded_edit_stores_nothing_and_notes_why(tenant: Tenant, bob: Caller) -> None:
    draft = make_draft(bob, tenant).json()
    job = Job.objects.get()
    assert "superseded" in (run_ingest(_run(job, 7)) or "")
    bob.delete(f"{tenant.path()}/drafts/{draft['id']}", if_match="*")
    assert "deleted" in (run_ingest(_run(job, 1)) or "")
    run_jobs()
    job.refresh_from_db()
    assert (job.status, "deleted" in job.note) == (JobStatus.COMPLETED, True)


def test_ingesting_twice_leaves_what_ingesting_once_left(tenant: Tenant, bob: Caller) -> None:
    draft = make_draft(bob, tenant, WRONG).json()
    run_jobs()
    path = f"{tenant.path()}/drafts/{draft['id']}"
    first = bob.get(path)
    from apps.pipelines.services import store_ingest

    assert store_ingest(draft_id=uuid.UUID(draft["id"]), rev=1, found=compile_spec(WRONG))
    assert bob.get(path).json() == first.json()


def test_nothing_is_written_under_a_deleted_environment(tenant: Tenant, bob: Caller) -> None:
    draft = make_draft(bob, tenant).json()
    tenancy.delete_node(actor=tenant.principal("alice").ref, scope=tenant.scope(), force=True)
    assert bob.get(f"{tenant.path()}/drafts/{draft['id']}").status_code == 404
    assert bob.post(f"{tenant.path()}/drafts", {"name": "a", "spec": ""}).status_code == 404
    run_jobs()
    assert not PipelineDraft.objects.filter(status="valid").exists()


def test_the_database_knows_the_statuses(tenant: Tenant, bob: Caller) -> None:
    make_draft(bob, tenant)
    with pytest.raises(IntegrityError), transaction.atomic():
        PipelineDraft.objects.update(status="odd")


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_of_edits_that_began_at_the_same_point_exactly_one_is_kept(tenant: Tenant) -> None:
    draft = make_draft(tenant.caller("bob"), tenant).json()
    draft_id, scope, actor = uuid.UUID(draft["id"]), tenant.scope(), tenant.principal("bob")

    def edit(number: int) -> PipelineDraft:
        return update_draft(actor=actor, scope=scope, draft_id=draft_id, expected_rev=1, name=f"Edit {number}")

    results = in_threads(*[lambda n=n: edit(n) for n in range(6)])
    won = [item for item in results if isinstance(item, PipelineDraft)]
    assert len(won) == 1, results
    assert sum(isinstance(item, PreconditionFailed) for item in results) == 5
    kept = PipelineDraft.objects.get()
    assert (kept.rev, kept.name) == (2, won[0].name)
    with pytest.raises(PreconditionFailed):
        delete_draft(actor=actor, scope=scope, draft_id=draft_id, expected_rev=1)
