"""API of organizations, projects and environments."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypedDict

from rest_framework.request import Request
from rest_framework.response import Response

from apps.api.base import ApiView, ScopedView, no_content_response
from apps.api.documents import document
from apps.api.etags import check_if_match, etag_response
from apps.api.operations import operation
from apps.api.parameters import BOOLEAN, exact_filter, text_filter
from apps.api.permissions import Permission
from apps.api.serializers import (
    JSONObjectField,
    StrictCharField,
    StrictIntegerField,
    StrictSerializer,
    read_only_members,
    validated_data,
    without_read_only,
)
from apps.core.errors import BadRequest, PreconditionFailed
from apps.tenancy import services
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.selectors import resolve

Node = Organization | Project | Environment
_NEW_ENVIRONMENT_ERRORS = ("slug_taken", "too_few_reviewers", "self_approval_only_in_dev")
_FILTERS = {"slug": exact_filter("slug"), "q": text_filter("name", "slug")}


class NodeInput(StrictSerializer):
    """`{name, slug?}`."""

    name = StrictCharField()
    slug = StrictCharField(max_length=63, required=False)


class EnvironmentInput(NodeInput):
    """Input of an environment: name, slug, posture, policy, limits."""

    posture = StrictCharField(max_length=16)
    policy = JSONObjectField(required=False)
    max_in_flight_deployments = StrictIntegerField(required=False)
    retention_days = JSONObjectField(required=False)
    enrollments_per_minute = StrictIntegerField(required=False)
    agent_upgrade_percent = StrictIntegerField(required=False)


class NodeDocument(TypedDict):
    """An organization or a project."""

    id: str
    name: str
    slug: str
    created_at: str
    updated_at: str


class EnvironmentDocument(NodeDocument):
    """An environment."""

    posture: str
    policy: Mapping[str, object]
    max_in_flight_deployments: int
    retention_days: Mapping[str, int]
    enrollments_per_minute: int
    agent_upgrade_percent: int
    current_deployment_id: str | None


class DeletingDocument(TypedDict):
    """A deletion that continues in the background: `status` is `deleting`."""

    status: str


def node_document(node: Node) -> NodeDocument:
    """Return the API representation of a node."""
    return document(EnvironmentDocument if isinstance(node, Environment) else NodeDocument, node)


def merge_patch(target: Any, patch: Any) -> Any:
    """Apply a JSON Merge Patch (RFC 7396) to `target`."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def _patched(
    present: Mapping[str, object], patch: Mapping[str, object], read_only: Collection[str]
) -> dict[str, object]:
    """Return what a PUT would send to make the change of `patch`.

    A node always has each of its members. So null for an object restores the defaults of all its members; for any other member
    it is kept, for validation to refuse it.
    """
    merged = merge_patch(present, patch)
    removed: dict[str, object] = {
        name: {} if isinstance(present.get(name), dict) else None for name, value in patch.items() if value is None
    }
    return {name: value for name, value in {**merged, **removed}.items() if name not in read_only}


class _NodeView(ScopedView):
    """Base of the views of one node. The view of each level declares these methods as its operations."""

    node_input: type[StrictSerializer] = NodeInput

    def read(self, request: Request) -> Response:
        """Read the organization, project or environment."""
        node = self.scope.node
        return etag_response(request, node_document(node), str(node.rev))

    def replace(self, request: Request) -> Response:
        """Replace the organization, project or environment. With If-Match, only if its ETag still matches."""
        node = self.scope.node
        expected = node.rev if "If-Match" in request.headers else None
        wanted = without_read_only(request.data, node_document(node), self.node_input)
        return self._change(wanted, expected_rev=expected)

    def merge(self, request: Request) -> Response:
        """Change the organization, project or environment by a JSON Merge Patch (RFC 7396).

        Without If-Match, the patch is merged again if another user changed it meanwhile.
        """
        patch = request.data
        if not isinstance(patch, dict):
            raise BadRequest("An object is expected.", code="invalid_input")
        while True:
            present = node_document(self.scope.node)
            given = without_read_only(patch, present, self.node_input)
            wanted = _patched(present, given, read_only_members(present, self.node_input))
            try:
                return self._change(wanted, expected_rev=self.scope.node.rev)
            except PreconditionFailed:
                if "If-Match" in request.headers:
                    raise
            self.scope = resolve(self.scope.organization_id, self.scope.project_id, self.scope.environment_id)

    def remove(self, request: Request) -> Response:
        """Delete the organization, project or environment and everything below it.

        204 when everything is deleted, 202 when the deletion continues in the background. With deployments in progress
        below it, 409 `deletion_blocked` unless `force=true`.
        """
        check_if_match(request, self.scope.node.rev)
        deleted = services.delete_node(
            actor=self.principal.ref,
            scope=self.scope,
            force=self.query["force"],
            expected_rev=self.scope.node.rev if "If-Match" in self.request.headers else None,
        )
        return no_content_response() if deleted else Response({"status": "deleting"}, status=202)

    def _change(self, wanted: Any, *, expected_rev: int | None) -> Response:
        changes = validated_data(self.node_input, wanted)
        check_if_match(self.request, self.scope.node.rev)
        updated = services.update_node(
            actor=self.principal.ref, node=self.scope.node, expected_rev=expected_rev, **changes
        )
        return etag_response(self.request, node_document(updated), str(updated.rev))


class OrganizationsView(ApiView):
    """Organizations."""

    @operation(lists=NodeDocument, filters=_FILTERS)
    def get(self, request: Request) -> Response:
        """List the organizations in which you have a role."""
        mine = {organization for organization, _, _ in self.principal.roles}
        return self.page(Organization.objects.filter(pk__in=mine, deleted_at__isnull=True), node_document)

    @operation(
        body=NodeInput, answer=NodeDocument, status=201, errors=("slug_taken", "address_not_proved", "quota_exceeded")
    )
    def post(self, request: Request) -> Response:
        """Create an organization. You become its org_admin."""
        node = services.create_organization(actor=self.principal.ref, **self.given)
        return etag_response(request, node_document(node), str(node.rev), status=201)


_NODE_CHANGE: dict[str, Any] = {
    "body": NodeInput,
    "parses_body": False,
    "answer": NodeDocument,
    "errors": ("slug_taken",),
}
_ENVIRONMENT_CHANGE: dict[str, Any] = {
    "body": EnvironmentInput,
    "parses_body": False,
    "answer": EnvironmentDocument,
    "errors": ("posture_fixed", *_NEW_ENVIRONMENT_ERRORS),
}
_DELETION: dict[str, Any] = {
    "parameters": {"force": BOOLEAN},
    "answer": DeletingDocument,
    "status": (204, 202),
    "errors": ("deletion_blocked",),
}


class OrganizationView(_NodeView):
    """One organization."""

    level = "organization"

    get = operation(Permission.VIEW_ORG_SUMMARY, answer=NodeDocument)(_NodeView.read)
    put = operation(Permission.MANAGE_ORG_MEMBERSHIPS, **_NODE_CHANGE)(_NodeView.replace)
    patch = operation(Permission.MANAGE_ORG_MEMBERSHIPS, **_NODE_CHANGE)(_NodeView.merge)
    delete = operation(Permission.MANAGE_ORG_MEMBERSHIPS, **_DELETION)(_NodeView.remove)


class ProjectsView(ScopedView):
    """Projects of an organization."""

    level = "organization"

    @operation(Permission.VIEW_ORG_SUMMARY, lists=NodeDocument, filters=_FILTERS)
    def get(self, request: Request) -> Response:
        """List the projects of the organization that you may view."""
        rows = Project.objects.visible_to(self.principal).filter(organization_id=self.scope.organization_id)
        return self.page(rows, node_document)

    @operation(Permission.MANAGE_PROJECT, body=NodeInput, answer=NodeDocument, status=201, errors=("slug_taken",))
    def post(self, request: Request) -> Response:
        """Create a project."""
        node = services.create_project(actor=self.principal.ref, organization=self.scope.organization, **self.given)
        return etag_response(request, node_document(node), str(node.rev), status=201)


class ProjectView(_NodeView):
    """One project."""

    level = "project"

    get = operation(Permission.VIEW_PROJECT, answer=NodeDocument)(_NodeView.read)
    put = operation(Permission.MANAGE_PROJECT, **_NODE_CHANGE)(_NodeView.replace)
    patch = operation(Permission.MANAGE_PROJECT, **_NODE_CHANGE)(_NodeView.merge)
    delete = operation(Permission.MANAGE_PROJECT, **_DELETION)(_NodeView.remove)


class EnvironmentsView(ScopedView):
    """Environments of a project."""

    level = "project"

    @operation(Permission.VIEW_PROJECT, lists=EnvironmentDocument, filters=_FILTERS)
    def get(self, request: Request) -> Response:
        """List the environments of the project that you may view."""
        rows = Environment.objects.visible_to(self.principal).filter(project_id=self.scope.project_id)
        return self.page(rows, node_document)

    @operation(
        Permission.MANAGE_PROJECT,
        body=EnvironmentInput,
        answer=EnvironmentDocument,
        status=201,
        errors=_NEW_ENVIRONMENT_ERRORS,
    )
    def post(self, request: Request) -> Response:
        """Create an environment."""
        project = self.scope.project
        assert project is not None
        node = services.create_environment(actor=self.principal.ref, project=project, **self.given)
        return etag_response(request, node_document(node), str(node.rev), status=201)


class EnvironmentView(_NodeView):
    """One environment."""

    level = "environment"
    node_input = EnvironmentInput

    get = operation(Permission.VIEW_ENVIRONMENT, answer=EnvironmentDocument)(_NodeView.read)
    put = operation(Permission.MANAGE_ENVIRONMENT, **_ENVIRONMENT_CHANGE)(_NodeView.replace)
    patch = operation(Permission.MANAGE_ENVIRONMENT, **_ENVIRONMENT_CHANGE)(_NodeView.merge)
    delete = operation(Permission.MANAGE_ENVIRONMENT, **_DELETION)(_NodeView.remove)
