"""Every write to drafts and versions."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from django.db import transaction
from django.db.models import F, Max

from apps.access.principals import Principal
from apps.audit import services as audit
from apps.core import clock
from apps.core.errors import FieldError, NotFound, PreconditionFailed, Unprocessable
from apps.jobs import services as jobs
from apps.pipelines.models import DraftStatus, PipelineDraft, PipelineVersion
from apps.runtime.faults import fault_point
from apps.runtime.spec import Compilation, compile_spec
from apps.tenancy.models import Environment
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environment, scope_of

INGEST_JOB = "spec_ingest"


def create_draft(*, actor: Principal, scope: Scope, name: str, spec: str) -> PipelineDraft:
    """Keep `spec` as a new draft, however wrong, and queue its ingestion. NotFound when the environment is gone."""
    with transaction.atomic():
        environment = lock_environment(scope.here.pk)
        here = scope_of(environment)
        draft = PipelineDraft.objects.create(
            environment=environment,
            name=name,
            spec=spec,
            created_by=actor.id,
            created_by_name=actor.name[:200],
        )
        _queue_ingest(here, draft)
        _record(actor, here, "draft.created", f"draft:{draft.pk}", {"name": name})
        fault_point("pipelines.draft.before_commit")
    fault_point("pipelines.draft.after_commit")
    return draft


def update_draft(
    *,
    actor: Principal,
    scope: Scope,
    draft_id: uuid.UUID,
    expected_rev: int,
    name: str | None = None,
    spec: str | None = None,
) -> PipelineDraft:
    """Replace what is given of the draft that is still at edit `expected_rev`, and queue its ingestion.

    Of two edits that began at the same one, the first is kept: the other raises PreconditionFailed. NotFound when the
    draft or its environment is gone. What ingestion had found is dropped with the text it was about.
    """
    with transaction.atomic():
        environment = lock_environment(scope.here.pk)
        here = scope_of(environment)
        given = {key: value for key, value in (("name", name), ("spec", spec)) if value is not None}
        rows = PipelineDraft.objects.filter(pk=draft_id, environment=environment)
        changed = rows.filter(rev=expected_rev).update(
            **given,
            rev=F("rev") + 1,
            updated_at=clock.now(),
            status=DraftStatus.PENDING,
            pipeline_name="",
            spec_hash=None,
            target=None,
            capabilities=[],
            diagnostics=[],
        )
        draft = rows.first()
        if draft is None:
            raise NotFound()
        if not changed:
            raise PreconditionFailed("Somebody else has edited this draft since you read it.")
        _queue_ingest(here, draft)
        _record(actor, here, "draft.updated", f"draft:{draft.pk}", {"rev": draft.rev, "changed": sorted(given)})
    return draft


def delete_draft(*, actor: Principal, scope: Scope, draft_id: uuid.UUID, expected_rev: int) -> None:
    """Delete the draft that is still at edit `expected_rev`; its versions stay. NotFound, PreconditionFailed."""
    with transaction.atomic():
        environment = lock_environment(scope.here.pk)
        here = scope_of(environment)
        rows = PipelineDraft.objects.filter(pk=draft_id, environment=environment)
        draft = rows.first()
        if draft is None:
            raise NotFound()
        deleted, _ = rows.filter(rev=expected_rev).delete()
        if not deleted:
            raise PreconditionFailed("Somebody else has edited this draft since you read it.")
        _record(actor, here, "draft.deleted", f"draft:{draft_id}", {"name": draft.name})


def store_ingest(*, draft_id: uuid.UUID, rev: int, found: Compilation) -> bool:
    """Store what ingestion found in edit `rev`, in the caller's transaction. False when the draft is past that edit.

    Safe to repeat: the same text gives the same finding.
    """
    changed = PipelineDraft.objects.filter(pk=draft_id, rev=rev, environment__deleted_at__isnull=True).update(
        status=DraftStatus.VALID if found.ok else DraftStatus.INVALID,
        pipeline_name=found.name or "",
        spec_hash=found.spec_hash,
        target=found.target,
        capabilities=list(found.capabilities),
        diagnostics=[item.as_dict() for item in found.diagnostics],
        ingest_rev=F("ingest_rev") + 1,
    )
    return changed == 1


@dataclass(frozen=True, slots=True)
class Frozen:
    """A version, and whether it was made just now or was there already."""

    version: PipelineVersion
    created: bool


def promote_draft(*, actor: Principal, scope: Scope, draft_id: uuid.UUID) -> Frozen:
    """Compile the draft's text and freeze it as the next version of its environment.

    Text whose hash a version already has gives that version. Raises NotFound, and Unprocessable `invalid_spec` with the
    diagnostics while there are errors. The draft's stored status is not looked at.
    """
    text = _spec_of(scope, draft_id)
    found = compile_spec(text)
    with transaction.atomic():
        environment = lock_environment(scope.here.pk)
        draft = PipelineDraft.objects.filter(pk=draft_id, environment=environment).first()
        if draft is None:
            raise NotFound()
        if draft.spec != text:
            found = compile_spec(draft.spec)
        if found.canonical is None or found.spec_hash is None or found.name is None or found.target is None:
            raise _invalid(found)
        frozen = _freeze(
            PipelineVersion(
                environment=environment,
                name=found.name,
                spec_hash=found.spec_hash,
                target=found.target,
                capabilities=list(found.capabilities),
                spec=found.canonical,
                draft_id=draft.pk,
                created_by=actor.id,
                created_by_name=actor.name[:200],
            )
        )
        if frozen.created:
            _record_version(actor, environment, "version.promoted", frozen.version)
        fault_point("pipelines.promote.before_commit")
    fault_point("pipelines.promote.after_commit")
    return frozen


def copy_version(*, actor: Principal, scope: Scope, version_id: uuid.UUID, to: Scope) -> Frozen:
    """The same version in a sibling environment `to`; the one that is there already when the hash is.

    The caller has checked that `actor` may operate both. Raises NotFound; Unprocessable `not_a_sibling`.
    """
    if to.project_id != scope.project_id or to.here.pk == scope.here.pk:
        raise Unprocessable(
            "A version is copied to another environment of the same project.",
            code="not_a_sibling",
            errors=[FieldError("/to_environment_id", "not_a_sibling", "Not another environment of this project.")],
        )
    with transaction.atomic():
        environment = lock_environment(to.here.pk)
        source = PipelineVersion.objects.filter(
            pk=version_id, environment=scope.here, environment__deleted_at__isnull=True
        ).first()
        if source is None:
            raise NotFound()
        frozen = _freeze(
            PipelineVersion(
                environment=environment,
                name=source.name,
                spec_hash=source.spec_hash,
                target=source.target,
                capabilities=source.capabilities,
                spec=source.spec,
                copied_from=source.pk,
                created_by=actor.id,
                created_by_name=actor.name[:200],
            )
        )
        if frozen.created:
            _record_version(actor, environment, "version.copied", frozen.version)
    return frozen


def _spec_of(scope: Scope, draft_id: uuid.UUID) -> str:
    text = PipelineDraft.objects.filter(pk=draft_id, environment=scope.here).values_list("spec", flat=True).first()
    if text is None:
        raise NotFound()
    return text


def _freeze(version: PipelineVersion) -> Frozen:
    """Give the version the next number and keep it. The environment's row is locked, so nobody else numbers here."""
    rows = PipelineVersion.objects.filter(environment=version.environment)
    there = rows.filter(spec_hash=version.spec_hash).first()
    if there is not None:
        return Frozen(there, created=False)
    version.number = (rows.aggregate(last=Max("number"))["last"] or 0) + 1
    version.save()
    return Frozen(version, created=True)


def _invalid(found: Compilation) -> Unprocessable:
    errors = found.errors
    return Unprocessable(
        f"The spec has {len(errors)} error{'s' if len(errors) != 1 else ''}.",
        code="invalid_spec",
        errors=[FieldError("/spec", item.code, f"Line {item.line}: {item.message}") for item in errors],
        extra={"diagnostics": [item.as_dict() for item in found.diagnostics]},
    )


def _queue_ingest(scope: Scope, draft: PipelineDraft) -> None:
    jobs.enqueue(
        type=INGEST_JOB,
        organization_id=scope.organization_id,
        environment_id=scope.here.pk,
        subject_id=draft.pk,
        payload={"rev": draft.rev},
        supersede=True,
    )


def _record_version(actor: Principal, environment: Environment, action: str, version: PipelineVersion) -> None:
    details: dict[str, object] = {"number": version.number, "name": version.name, "spec_hash": version.spec_hash}
    if version.draft_id is not None:
        details["draft_id"] = str(version.draft_id)
    if version.copied_from is not None:
        details["copied_from"] = str(version.copied_from)
    _record(actor, scope_of(environment), action, f"version:{version.pk}", details)


def _record(actor: Principal, scope: Scope, action: str, target: str, details: dict[str, object]) -> None:
    audit.record(
        organization_id=scope.organization_id,
        action=action,
        actor=actor.ref,
        target=target,
        scope=scope.as_dict(),
        details=details,
    )
