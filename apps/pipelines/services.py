"""Every write to drafts and versions."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from django.db import transaction
from django.db.models import F, Max

from apps.access.principals import Principal
from apps.audit import services as audit
from apps.core import clock
from apps.core.db import require_row
from apps.core.errors import FieldError, PreconditionFailed, Unprocessable
from apps.jobs import services as jobs
from apps.pipelines.models import DraftStatus, PipelineDraft, PipelineVersion
from apps.pipelines.selectors import get_draft
from apps.runtime.faults import fault_point
from apps.runtime.spec import Compilation, as_dicts, compile_spec
from apps.tenancy.models import Environment
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environment, scope_of

INGEST_JOB = "spec_ingest"


def create_draft(*, actor: Principal, scope: Scope, name: str, spec: str) -> PipelineDraft:
    """Store `spec` as a new draft, even with errors, and queue its ingestion.

    Raises NotFound when the environment was deleted.
    """
    with transaction.atomic():
        environment = lock_environment(scope.require_environment().pk)
        here = scope_of(environment)
        draft = PipelineDraft.objects.create(
            environment=environment,
            name=name,
            spec=spec,
            created_by=actor.id,
            created_by_name=actor.name[:200],
        )
        _queue_ingest(here, draft)
        audit.record_in(
            here, action="draft.created", actor=actor.ref, target=f"draft:{draft.pk}", details={"name": name}
        )
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
    """Update the given fields of the draft if it is still at edit `expected_rev`, and queue its ingestion.

    Raises PreconditionFailed when the draft was edited since. Raises NotFound when the draft or its environment was
    deleted. The result of the previous ingestion is cleared.
    """
    with transaction.atomic():
        environment = lock_environment(scope.require_environment().pk)
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
        draft = require_row(rows)
        if not changed:
            raise PreconditionFailed("Another user edited this draft after you read it.")
        _queue_ingest(here, draft)
        audit.record_in(
            here,
            action="draft.updated",
            actor=actor.ref,
            target=f"draft:{draft.pk}",
            details={"rev": draft.rev, "changed": sorted(given)},
        )
    return draft


def delete_draft(*, actor: Principal, scope: Scope, draft_id: uuid.UUID, expected_rev: int) -> None:
    """Delete the draft if it is still at edit `expected_rev`. Its versions are kept.

    Raises NotFound, PreconditionFailed.
    """
    with transaction.atomic():
        environment = lock_environment(scope.require_environment().pk)
        here = scope_of(environment)
        rows = PipelineDraft.objects.filter(pk=draft_id, environment=environment)
        draft = require_row(rows)
        deleted, _ = rows.filter(rev=expected_rev).delete()
        if not deleted:
            raise PreconditionFailed("Another user edited this draft after you read it.")
        audit.record_in(
            here, action="draft.deleted", actor=actor.ref, target=f"draft:{draft_id}", details={"name": draft.name}
        )


def store_ingest(*, draft_id: uuid.UUID, rev: int, found: Compilation) -> bool:
    """Store the result of ingesting edit `rev`, in the caller's transaction. Safe to repeat.

    Returns False, and stores nothing, when the draft was edited or deleted since.
    """
    changed = PipelineDraft.objects.filter(pk=draft_id, rev=rev, environment__deleted_at__isnull=True).update(
        status=DraftStatus.VALID if found.ok else DraftStatus.INVALID,
        pipeline_name=found.name or "",
        spec_hash=found.spec_hash,
        target=found.target,
        capabilities=list(found.capabilities),
        diagnostics=as_dicts(found.diagnostics),
        ingest_rev=F("ingest_rev") + 1,
    )
    return changed == 1


@dataclass(frozen=True, slots=True)
class PromotionResult:
    """A version, and whether this call created it."""

    version: PipelineVersion
    created: bool


def promote_draft(*, actor: Principal, scope: Scope, draft_id: uuid.UUID) -> PromotionResult:
    """Compile the draft's text and store it as the next version of its environment.

    Returns the existing version when one has the same hash. The draft's stored status is not used. Raises NotFound, and
    Unprocessable `invalid_spec` with the diagnostics when the spec has errors.
    """
    text = get_draft(scope, draft_id).spec
    found = compile_spec(text)
    with transaction.atomic():
        environment = lock_environment(scope.require_environment().pk)
        draft = require_row(PipelineDraft, pk=draft_id, environment=environment)
        if draft.spec != text:
            found = compile_spec(draft.spec)
        if found.canonical is None or found.spec_hash is None or found.name is None or found.target is None:
            raise _invalid(found)
        frozen = _store_version(
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


def copy_version(*, actor: Principal, scope: Scope, version_id: uuid.UUID, to: Scope) -> PromotionResult:
    """Copy a version to environment `to` of the same project.

    Returns the existing version when one has the same hash. The caller checks that `actor` may operate both
    environments. Raises NotFound, and Unprocessable `not_a_sibling`.
    """
    if to.project_id != scope.project_id or to.require_environment().pk == scope.require_environment().pk:
        raise Unprocessable(
            "A version can only be copied to another environment of the same project.",
            code="not_a_sibling",
            errors=[FieldError("/to_environment_id", "not_a_sibling", "Not another environment of this project.")],
        )
    with transaction.atomic():
        environment = lock_environment(to.require_environment().pk)
        source = require_row(
            PipelineVersion,
            pk=version_id,
            environment=scope.require_environment(),
            environment__deleted_at__isnull=True,
        )
        frozen = _store_version(
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


def _store_version(version: PipelineVersion) -> PromotionResult:
    """Store the version under the next number. The lock on the environment's row serializes the numbering."""
    rows = PipelineVersion.objects.filter(environment=version.environment)
    there = rows.filter(spec_hash=version.spec_hash).first()
    if there is not None:
        return PromotionResult(there, created=False)
    version.number = (rows.aggregate(last=Max("number"))["last"] or 0) + 1
    version.save()
    return PromotionResult(version, created=True)


def _invalid(found: Compilation) -> Unprocessable:
    errors = found.errors
    return Unprocessable(
        f"The spec has {len(errors)} error{'s' if len(errors) != 1 else ''}.",
        code="invalid_spec",
        errors=[FieldError("/spec", item.code, f"Line {item.line}: {item.message}") for item in errors],
        extra={"diagnostics": as_dicts(found.diagnostics)},
    )


def _queue_ingest(scope: Scope, draft: PipelineDraft) -> None:
    jobs.enqueue(
        type=INGEST_JOB,
        organization_id=scope.organization_id,
        environment_id=scope.require_environment().pk,
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
    audit.record_in(
        scope_of(environment), action=action, actor=actor.ref, target=f"version:{version.pk}", details=details
    )
