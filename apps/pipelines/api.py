"""Drafts and versions over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from apps.access import policy
from apps.access.roles import Permission
from apps.api.base import ScopedView, no_content_response
from apps.api.documents import document
from apps.api.etags import check_if_match, etag_response
from apps.api.operations import operation
from apps.api.parameters import ID, exact_filter, status_filter, text_filter
from apps.api.serializers import (
    EmptyInput,
    StrictCharField,
    StrictSerializer,
    UUIDField,
    validated_data,
    without_read_only,
)
from apps.core.db import require_row
from apps.pipelines import selectors, services
from apps.pipelines.models import MAX_NAME, MAX_SPEC_CHARACTERS, DraftStatus, PipelineDraft, PipelineVersion
from apps.runtime.spec import Compilation, as_dicts
from apps.tenancy.models import Environment
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import scope_of

NOT_INGESTED: Mapping[str, object] = {
    "status": "pending",
    "spec_hash": None,
    "target": None,
    "capabilities": [],
    "diagnostics": [],
}
VIEW, OPERATE = Permission.VIEW_ENVIRONMENT, Permission.OPERATE_ENVIRONMENT


class DraftInput(StrictSerializer):
    """Writable fields of a draft. The spec is stored unchanged, whitespace included."""

    name = StrictCharField(max_length=MAX_NAME)
    spec = StrictCharField(max_length=MAX_SPEC_CHARACTERS, trim_whitespace=False, allow_blank=True)


class CopyInput(StrictSerializer):
    """Target environment of a copy."""

    to_environment_id = UUIDField()


LONG_MEMBERS = ("spec", "diagnostics")
"""Members that a list of drafts omits unless `?include=` names them."""


class DraftDocument(TypedDict):
    """A draft; a list has `spec` and `diagnostics` only with `?include=`."""

    id: str
    name: str
    spec: NotRequired[str]
    diagnostics: NotRequired[Sequence[Mapping[str, object]]]
    status: str
    spec_hash: str | None
    target: str | None
    capabilities: list[str]
    created_by: str | None
    created_by_name: str
    created_at: str
    updated_at: str


class VersionDocument(TypedDict):
    """A version, without its text."""

    id: str
    number: int
    name: str
    spec_hash: str
    target: str
    capabilities: list[str]
    draft_id: str | None
    copied_from: str | None
    created_by: str | None
    created_by_name: str
    created_at: str


class CompilationDocument(TypedDict):
    """What a text compiles to now."""

    status: str
    name: str | None
    target: str | None
    spec_hash: str | None
    capabilities: list[str]
    diagnostics: Sequence[Mapping[str, object]]
    canonical: str | None
    plan: Mapping[str, object] | None


class PreviewDocument(CompilationDocument):
    """What promoting a draft would make, and how it differs from the newest version."""

    against: VersionDocument | None
    diff: Mapping[str, object] | None


class DiffDocument(TypedDict):
    """How a version differs from another: what changed in words, and every line of both texts."""

    version: VersionDocument
    against: VersionDocument | None
    changes: Sequence[Mapping[str, object]]
    lines: Sequence[Mapping[str, object]]


def draft_document(draft: PipelineDraft, members: Collection[str] = LONG_MEMBERS) -> DraftDocument:
    """Return the API representation of a draft, with the long members that `members` names."""
    return document(DraftDocument, draft, without=set(LONG_MEMBERS) - set(members))


def draft_etag(draft: PipelineDraft) -> str:
    """ETag value `<edit>.<ingest>`; If-Match compares the edit only."""
    return f"{draft.rev}.{draft.ingest_rev}"


def version_document(version: PipelineVersion) -> VersionDocument:
    """Return the API representation of a version, without its text (see `/spec`)."""
    return document(VersionDocument, version)


def compilation_document(found: Compilation) -> CompilationDocument:
    """Return the API representation of a compilation."""
    return document(
        CompilationDocument,
        found,
        status=str(DraftStatus.VALID if found.ok else DraftStatus.INVALID),
        capabilities=list(found.capabilities),
        diagnostics=as_dicts(found.diagnostics),
        plan=found.plan.as_dict() if found.plan is not None else None,
    )


class DraftsView(ScopedView):
    """Drafts of an environment.

    A new draft is stored even when its spec has errors. Ingestion validates it in the background: see `status`.
    """

    @operation(
        VIEW,
        lists=DraftDocument,
        filters={
            "status": status_filter(DraftStatus.values),
            "name": exact_filter("name"),
            "q": text_filter("name", "pipeline_name", "spec_hash"),
        },
        long_members=LONG_MEMBERS,
    )
    def get(self, request: Request) -> Response:
        """List the drafts of the environment."""
        return self.page(selectors.drafts(self.scope), draft_document)

    @operation(OPERATE, body=DraftInput, answer=DraftDocument, status=201)
    def post(self, request: Request) -> Response:
        """Create a draft. A spec with errors is stored too; see `status`."""
        draft = services.create_draft(actor=self.principal, scope=self.scope, **self.given)
        return etag_response(request, draft_document(draft), draft_etag(draft), status=201)


class _DraftView(ScopedView):
    """Base of the views of one draft."""

    queryset = PipelineDraft.objects.all()
    found: PipelineDraft


class DraftView(_DraftView):
    """A draft.

    Every write needs `If-Match` with the ETag that was read, so that concurrent edits are not overwritten.
    """

    @operation(VIEW, answer=DraftDocument)
    def get(self, request: Request) -> Response:
        """Read a draft."""
        return etag_response(request, draft_document(self.found), draft_etag(self.found))

    @operation(OPERATE, body=DraftInput, parses_body=False, answer=DraftDocument)
    def put(self, request: Request) -> Response:
        """Replace a draft. Needs `If-Match`."""
        return self._update(request, self._whole(request.data))

    @operation(OPERATE, body=DraftInput, parses_body=False, answer=DraftDocument)
    def patch(self, request: Request) -> Response:
        """Update a draft. Needs `If-Match`."""
        return self._update(request, validated_data(DraftInput, request.data, partial=True))

    @operation(OPERATE, status=204)
    def delete(self, request: Request) -> Response:
        """Delete a draft; its versions are kept. Needs `If-Match`."""
        draft = self.found
        check_if_match(request, draft.rev, required=True)
        services.delete_draft(actor=self.principal, scope=self.scope, draft_id=draft.pk, expected_rev=draft.rev)
        return no_content_response()

    def _whole(self, data: Any) -> dict[str, Any]:
        """Validate the body of a PUT.

        Read-only members are accepted with the values that GET returns now, or returned before ingestion.
        """
        given = without_read_only(data, draft_document(self.found), DraftInput, former=NOT_INGESTED)
        return validated_data(DraftInput, given)

    def _update(self, request: Request, given: Mapping[str, Any]) -> Response:
        draft = self.found
        check_if_match(request, draft.rev, required=True)
        changed = services.update_draft(
            actor=self.principal,
            scope=self.scope,
            draft_id=draft.pk,
            expected_rev=draft.rev,
            name=given.get("name"),
            spec=given.get("spec"),
        )
        return etag_response(request, draft_document(changed), draft_etag(changed))


class PreviewView(_DraftView):
    """Preview of a draft's promotion."""

    @operation(OPERATE, body=EmptyInput, answer=PreviewDocument)
    def post(self, request: Request) -> Response:
        """Preview the promotion of a draft: compile its text now and store nothing."""
        seen = selectors.preview(self.scope, self.found)
        body: PreviewDocument = {
            **compilation_document(seen.compilation),
            "against": version_document(seen.against) if seen.against is not None else None,
            "diff": seen.diff.as_dict() if seen.diff is not None else None,
        }
        return Response(body)


class PromoteView(_DraftView):
    """Promotion of a draft to a version."""

    @operation(OPERATE, body=EmptyInput, answer=VersionDocument, status=(201, 200), errors=("invalid_spec",))
    def post(self, request: Request) -> Response:
        """Promote the draft's text to a version.

        Answers 201 with the new version, or 200 with the existing version that has the same hash.
        """
        frozen = services.promote_draft(actor=self.principal, scope=self.scope, draft_id=self.found.pk)
        return Response(version_document(frozen.version), status=201 if frozen.created else 200)

    def location(self, request: Request, body: Any) -> str:
        return f"{request.path.rsplit('/drafts/', 1)[0]}/versions/{body['id']}"


class VersionsView(ScopedView):
    """Versions of an environment."""

    @operation(
        VIEW,
        lists=VersionDocument,
        filters={"spec_hash": exact_filter("spec_hash"), "q": text_filter("name", "spec_hash")},
    )
    def get(self, request: Request) -> Response:
        """List the versions of the environment."""
        return self.page(selectors.versions(self.scope).defer("spec"), version_document)


class _VersionView(ScopedView):
    """Base of the views of one version."""

    queryset = PipelineVersion.objects.all()
    found: PipelineVersion


class VersionView(_VersionView):
    """A version."""

    @operation(VIEW, answer=VersionDocument)
    def get(self, request: Request) -> Response:
        """Read a version."""
        tag = self.found.spec_hash.removeprefix("sha256:")[:32]
        return etag_response(request, version_document(self.found), tag)


class VersionSpecView(_VersionView):
    """The canonical text of a version."""

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """Accept any `Accept` header: a success is text, an error is a problem document."""
        return super().perform_content_negotiation(request, force=True)

    @operation(VIEW)
    def get(self, request: Request) -> HttpResponse:
        """Download the canonical text of a version."""
        version = self.found
        response = HttpResponse(version.spec.encode("ascii"), content_type="text/plain; charset=us-ascii")
        response["Content-Disposition"] = f'attachment; filename="{version.name}-v{version.number}.kv"'
        response["ETag"] = f'"{version.spec_hash.removeprefix("sha256:")}"'
        response["X-Content-Type-Options"] = "nosniff"
        return response


class VersionDiffView(_VersionView):
    """Comparison of two versions."""

    @operation(VIEW, parameters={"against": ID}, answer=DiffDocument)
    def get(self, request: Request) -> Response:
        """Compare a version with another version of its project.

        `?against=` names the other version; without it, the previous version of the environment is used.
        """
        version, against_id = self.found, self.query["against"]
        if against_id is None:
            against = selectors.version_before(version)
        else:
            against = selectors.comparable_version(self.principal, self.scope, against_id)
        diff = selectors.diff_specs(against.spec if against is not None else None, version.spec)
        return Response(
            {
                "version": version_document(version),
                "against": version_document(against) if against is not None else None,
                **diff.as_dict(),
            }
        )


class VersionCopyView(_VersionView):
    """Copies of a version in other environments."""

    @operation(OPERATE, body=CopyInput, answer=VersionDocument, status=(201, 200), errors=("not_a_sibling",))
    def post(self, request: Request) -> Response:
        """Copy a version to another environment of the project.

        Answers 201 with the new version, or 200 with the existing version that has the same hash.
        """
        to = self._target(self.given["to_environment_id"])
        frozen = services.copy_version(actor=self.principal, scope=self.scope, version_id=self.found.pk, to=to)
        prefix = request.path.split("/orgs/", 1)[0]
        there = f"{prefix}/orgs/{to.organization_id}/projects/{to.project_id}/environments/{to.environment_id}"
        return Response(
            version_document(frozen.version),
            status=201 if frozen.created else 200,
            headers={"Location": f"{there}/versions/{frozen.version.pk}"} if frozen.created else None,
        )

    def _target(self, environment_id: uuid.UUID) -> Scope:
        """Return the scope of the target environment.

        Raises NotFound when the caller may not see it, Forbidden when the caller may not operate it.
        """
        environment = require_row(
            Environment.objects.select_related("project__organization"),
            pk=environment_id,
            deleted_at__isnull=True,
            project__deleted_at__isnull=True,
            project__organization__deleted_at__isnull=True,
        )
        scope = scope_of(environment)
        policy.require(self.principal, Permission.OPERATE_ENVIRONMENT, scope)
        return scope
