"""Drafts and versions over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from apps.access import policy
from apps.access.api import ScopedView
from apps.access.roles import Permission
from apps.core.api import (
    Id,
    StrictSerializer,
    Text,
    check_if_match,
    keyset_page,
    rfc3339,
    status_filter,
    tagged,
    text_filter,
    validated,
)
from apps.core.errors import BadRequest, FieldError, NotFound
from apps.core.ids import parse_id
from apps.pipelines import selectors, services
from apps.pipelines.models import MAX_NAME, MAX_SPEC_CHARACTERS, DraftStatus, PipelineDraft, PipelineVersion
from apps.runtime.spec import Compilation
from apps.tenancy.models import Environment
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import scope_of

WRITABLE = ("name", "spec")
NOT_INGESTED: Mapping[str, object] = {
    "status": "pending",
    "spec_hash": None,
    "target": None,
    "capabilities": [],
    "diagnostics": [],
}
READ: Mapping[str, Permission] = {"GET": Permission.VIEW_ENVIRONMENT}
WRITE: Mapping[str, Permission] = {"POST": Permission.OPERATE_ENVIRONMENT}


class DraftIn(StrictSerializer):
    """What people write of a draft. The spec is taken as it is, white space included."""

    name = Text(max_length=MAX_NAME)
    spec = Text(max_length=MAX_SPEC_CHARACTERS, trim_whitespace=False, allow_blank=True)


class EmptyIn(StrictSerializer):
    """Nothing: an empty body or `{}`."""


class CopyIn(StrictSerializer):
    """Where a version is copied to."""

    to_environment_id = Id()


def draft_body(draft: PipelineDraft) -> dict[str, object]:
    """A draft as the API shows it."""
    return {
        "id": str(draft.pk),
        "name": draft.name,
        "spec": draft.spec,
        "status": draft.status,
        "spec_hash": draft.spec_hash,
        "target": draft.target,
        "capabilities": draft.capabilities,
        "diagnostics": draft.diagnostics,
        "created_by": str(draft.created_by) if draft.created_by else None,
        "created_by_name": draft.created_by_name,
        "created_at": rfc3339(draft.created_at),
        "updated_at": rfc3339(draft.updated_at),
    }


def draft_tag(draft: PipelineDraft) -> str:
    """`<edit>.<ingest>`: If-Match looks at the edit alone."""
    return f"{draft.rev}.{draft.ingest_rev}"


def version_body(version: PipelineVersion) -> dict[str, object]:
    """A version as the API shows it; its text is under `/spec`."""
    return {
        "id": str(version.pk),
        "number": version.number,
        "name": version.name,
        "spec_hash": version.spec_hash,
        "target": version.target,
        "capabilities": version.capabilities,
        "draft_id": str(version.draft_id) if version.draft_id else None,
        "copied_from": str(version.copied_from) if version.copied_from else None,
        "created_by": str(version.created_by) if version.created_by else None,
        "created_by_name": version.created_by_name,
        "created_at": rfc3339(version.created_at),
    }


def compilation_body(found: Compilation) -> dict[str, object]:
    """What compiling a text gave."""
    return {
        "status": str(DraftStatus.VALID if found.ok else DraftStatus.INVALID),
        "name": found.name,
        "target": found.target,
        "spec_hash": found.spec_hash,
        "capabilities": list(found.capabilities),
        "diagnostics": [item.as_dict() for item in found.diagnostics],
        "canonical": found.canonical,
        "plan": found.plan.as_dict() if found.plan is not None else None,
    }


def no_parameters(request: Request, *known: str) -> None:
    """Refuse query parameters other than `known`, and repeated ones. BadRequest."""
    for name in request.query_params:
        if name not in known or len(request.query_params.getlist(name)) > 1:
            detail = f"'{name[:64]}' is not known here, or given twice."
            raise BadRequest(detail, code="bad_parameter", errors=[FieldError(f"?{name}", "bad_parameter", detail)])


class DraftsView(ScopedView):
    """The environment's drafts."""

    permissions: ClassVar[Mapping[str, Permission]] = {**READ, **WRITE}

    def get(self, request: Request, **_path: uuid.UUID) -> Response:
        filters = {"status": status_filter(DraftStatus.values), "q": text_filter("name", "pipeline_name", "spec_hash")}
        return keyset_page(request, selectors.drafts(self.scope), draft_body, filters=filters)

    def post(self, request: Request, **_path: uuid.UUID) -> Response:
        given = self.read(DraftIn)
        draft = services.create_draft(actor=self.principal, scope=self.scope, name=given["name"], spec=given["spec"])
        return tagged(request, draft_body(draft), draft_tag(draft), status=201)


class DraftView(ScopedView):
    """One draft. Changing it needs If-Match with the ETag that was read: nobody's edit is lost."""

    finds = selectors.get_draft

    def get(self, request: Request, draft_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        draft = selectors.get_draft(self.scope, draft_id)
        return tagged(request, draft_body(draft), draft_tag(draft))

    def put(self, request: Request, draft_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        draft = selectors.get_draft(self.scope, draft_id)
        given = self._whole(request.data, draft)
        return self._update(request, draft, given)

    def patch(self, request: Request, draft_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        draft = selectors.get_draft(self.scope, draft_id)
        return self._update(request, draft, self.read(DraftIn, partial=True))

    def delete(self, request: Request, draft_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        draft = selectors.get_draft(self.scope, draft_id)
        check_if_match(request, draft.rev, required=True)
        services.delete_draft(actor=self.principal, scope=self.scope, draft_id=draft.pk, expected_rev=draft.rev)
        return Response(status=204)

    def _whole(self, data: Any, draft: PipelineDraft) -> dict[str, Any]:
        """A PUT's body. What GET showed may be sent back unchanged, also what it showed before ingestion was done."""
        if not isinstance(data, dict):
            return self.read(DraftIn)
        shown = draft_body(draft)
        given = {key: value for key, value in data.items() if key not in shown or key in WRITABLE}
        errors = [
            FieldError(f"/{key}", "read_only", "This field can't be changed.")
            for key, value in data.items()
            if key not in given and value != shown[key] and not (key in NOT_INGESTED and value == NOT_INGESTED[key])
        ]
        if errors:
            raise BadRequest("The input is not valid.", code="invalid_input", errors=errors)
        return validated(DraftIn, given)

    def _update(self, request: Request, draft: PipelineDraft, given: Mapping[str, Any]) -> Response:
        check_if_match(request, draft.rev, required=True)
        changed = services.update_draft(
            actor=self.principal,
            scope=self.scope,
            draft_id=draft.pk,
            expected_rev=draft.rev,
            name=given.get("name"),
            spec=given.get("spec"),
        )
        return tagged(request, draft_body(changed), draft_tag(changed))


class PreviewView(ScopedView):
    """What the draft would become: compiled now, nothing stored."""

    finds = selectors.get_draft
    permissions: ClassVar[Mapping[str, Permission]] = {**READ, **WRITE}

    def post(self, request: Request, draft_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        draft = selectors.get_draft(self.scope, draft_id)
        self.read(EmptyIn)
        seen = selectors.preview(self.scope, draft)
        return Response(
            {
                **compilation_body(seen.compilation),
                "against": version_body(seen.against) if seen.against is not None else None,
                "diff": seen.diff.as_dict() if seen.diff is not None else None,
            }
        )


class PromoteView(ScopedView):
    """Freezes the draft's text: 201 with a new version, 200 with the one that has the same hash."""

    finds = selectors.get_draft
    permissions: ClassVar[Mapping[str, Permission]] = {**READ, **WRITE}

    def post(self, request: Request, draft_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        selectors.get_draft(self.scope, draft_id)
        self.read(EmptyIn)
        frozen = services.promote_draft(actor=self.principal, scope=self.scope, draft_id=draft_id)
        return Response(version_body(frozen.version), status=201 if frozen.created else 200)


class VersionsView(ScopedView):
    """The environment's versions."""

    permissions: ClassVar[Mapping[str, Permission]] = READ

    def get(self, request: Request, **_path: uuid.UUID) -> Response:
        filters = {"q": text_filter("name", "spec_hash")}
        return keyset_page(request, selectors.versions(self.scope), version_body, filters=filters)


class VersionView(ScopedView):
    """One version."""

    permissions: ClassVar[Mapping[str, Permission]] = READ

    def get(self, request: Request, version_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        version = selectors.get_version(self.scope, version_id)
        return tagged(request, version_body(version), version.spec_hash.removeprefix("sha256:")[:32])


class VersionSpecView(ScopedView):
    """A version's canonical text, to be saved."""

    permissions: ClassVar[Mapping[str, Permission]] = READ

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """The answer is text whatever was asked for; problems are problem documents."""
        return super().perform_content_negotiation(request, force=True)

    def get(self, request: Request, version_id: uuid.UUID, **_path: uuid.UUID) -> HttpResponse:
        version = selectors.get_version(self.scope, version_id)
        response = HttpResponse(version.spec.encode("ascii"), content_type="text/plain; charset=us-ascii")
        response["Content-Disposition"] = f'attachment; filename="{version.name}-v{version.number}.kv"'
        response["ETag"] = f'"{version.spec_hash.removeprefix("sha256:")}"'
        response["X-Content-Type-Options"] = "nosniff"
        return response


class VersionDiffView(ScopedView):
    """What a version changes against another one of its project (`?against=`), or against the one before it."""

    permissions: ClassVar[Mapping[str, Permission]] = READ

    def get(self, request: Request, version_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        version = selectors.get_version(self.scope, version_id)
        no_parameters(request, "against")
        given = request.query_params.get("against")
        if given is None:
            against = selectors.version_before(version)
        else:
            against_id = parse_id(given)
            if against_id is None:
                detail = "A UUID is expected."
                raise BadRequest(detail, code="bad_parameter", errors=[FieldError("?against", "invalid", detail)])
            against = selectors.comparable_version(self.principal, self.scope, against_id)
        diff = selectors.diff_specs(against.spec if against is not None else None, version.spec)
        return Response(
            {
                "version": version_body(version),
                "against": version_body(against) if against is not None else None,
                **diff.as_dict(),
            }
        )


class VersionCopyView(ScopedView):
    """Copies a version to a sibling environment: 201, or 200 when it is there already."""

    finds = selectors.get_version
    permissions: ClassVar[Mapping[str, Permission]] = {**READ, **WRITE}

    def post(self, request: Request, version_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        version = selectors.get_version(self.scope, version_id)
        given = self.read(CopyIn)
        to = self._target(given["to_environment_id"])
        frozen = services.copy_version(actor=self.principal, scope=self.scope, version_id=version.pk, to=to)
        return Response(version_body(frozen.version), status=201 if frozen.created else 200)

    def _target(self, environment_id: uuid.UUID) -> Scope:
        """The environment to copy to, if the caller may operate it. NotFound when it may not even be seen."""
        environment = (
            Environment.objects.select_related("project__organization")
            .filter(
                pk=environment_id,
                deleted_at__isnull=True,
                project__deleted_at__isnull=True,
                project__organization__deleted_at__isnull=True,
            )
            .first()
        )
        if environment is None:
            raise NotFound()
        scope = scope_of(environment)
        policy.require(self.principal, Permission.OPERATE_ENVIRONMENT, scope)
        return scope
