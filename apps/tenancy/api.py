"""Organizations, projects and environments over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.api.base import PersonView, ScopedView, no_content
from apps.access.roles import Permission
from apps.access.selectors import active_memberships, environments_visible_to, projects_visible_to
from apps.core.api import (
    JSONObject,
    StrictSerializer,
    Text,
    WholeNumber,
    check_if_match,
    keyset_page,
    rfc3339,
    tagged,
    text_filter,
    validated,
)
from apps.core.errors import BadRequest, FieldError, PreconditionFailed
from apps.tenancy import services
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.selectors import resolve

Node = Organization | Project | Environment


class NodeInput(StrictSerializer):
    """`{name, slug?}`."""

    name = Text()
    slug = Text(max_length=63, required=False)


class EnvironmentInput(NodeInput):
    """`{name, slug?, posture, policy?, max_in_flight_deployments?, retention_days?}`."""

    posture = Text(max_length=16)
    policy = JSONObject(required=False)
    max_in_flight_deployments = WholeNumber(required=False)
    retention_days = JSONObject(required=False)


def node_document(node: Node) -> dict[str, object]:
    """A node of the tree as the API shows it."""
    body: dict[str, object] = {
        "id": str(node.pk),
        "name": node.name,
        "slug": node.slug,
        "created_at": rfc3339(node.created_at),
        "updated_at": rfc3339(node.updated_at),
    }
    if isinstance(node, Environment):
        body |= {
            "posture": node.posture,
            "policy": node.policy,
            "max_in_flight_deployments": node.max_in_flight_deployments,
            "retention_days": node.retention_days,
            "current_deployment_id": str(node.current_deployment_id) if node.current_deployment_id else None,
        }
    return body


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396: `target` with `patch` merged in."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


READ_ONLY = ("id", "created_at", "updated_at", "current_deployment_id")


def _without_read_only(body: Any, present: Mapping[str, object]) -> Any:
    """`body` less the read-only members that equal what is stored; BadRequest for those that don't."""
    if not isinstance(body, dict):
        return body
    wrong = [
        FieldError(f"/{key}", "read_only", "This field can't be set.")
        for key in READ_ONLY
        if key in body and body[key] != present.get(key)
    ]
    if wrong:
        raise BadRequest("A read-only field differs.", code="invalid_input", errors=wrong)
    return {key: value for key, value in body.items() if key not in READ_ONLY}


class _NodeView(ScopedView):
    """GET, PUT, PATCH and DELETE of one node."""

    def _input(self) -> type[StrictSerializer]:
        return EnvironmentInput if self.level == "environment" else NodeInput

    def get(self, request: Request, **ids: uuid.UUID) -> Response:
        node = self.scope.node
        return tagged(request, node_document(node), str(node.rev))

    def _change(self, request: Request, wanted: Any, *, expected_rev: int | None) -> Response:
        changes = validated(self._input(), wanted)
        check_if_match(request, self.scope.node.rev)
        updated = services.update_node(
            actor=self.principal.ref, node=self.scope.node, expected_rev=expected_rev, **changes
        )
        return tagged(request, node_document(updated), str(updated.rev))

    def put(self, request: Request, **ids: uuid.UUID) -> Response:
        node = self.scope.node
        expected = node.rev if "If-Match" in request.headers else None
        return self._change(request, _without_read_only(request.data, node_document(node)), expected_rev=expected)

    def patch(self, request: Request, **ids: uuid.UUID) -> Response:
        """A patch holds for what is stored when it is written: if somebody else was faster, it is merged again."""
        patch = request.data
        if not isinstance(patch, dict):
            raise BadRequest("An object is expected.", code="invalid_input")
        while True:
            present = node_document(self.scope.node)
            merged = merge_patch(present, _without_read_only(patch, present))
            wanted = {k: v for k, v in merged.items() if k not in READ_ONLY}
            try:
                return self._change(request, wanted, expected_rev=self.scope.node.rev)
            except PreconditionFailed:
                if "If-Match" in request.headers:
                    raise
            self.scope = resolve(self.scope.organization_id, self.scope.project_id, self.scope.environment_id)

    def delete(self, request: Request, **ids: uuid.UUID) -> Response:
        force = _force(request)
        check_if_match(request, self.scope.node.rev)
        gone = services.delete_node(actor=self.principal.ref, scope=self.scope, force=force)
        return no_content() if gone else Response({"status": "deleting"}, status=202)


def _force(request: Request) -> bool:
    value = request.query_params.get("force", "false")
    if value not in ("true", "false"):
        raise BadRequest("force is true or false.", code="bad_filter")
    return value == "true"


class OrganizationsView(PersonView):
    """GET: organizations I have a role in. POST: a new one, of which I become org_admin."""

    def get(self, request: Request) -> Response:
        mine = active_memberships(self.principal.id or uuid.UUID(int=0)).values("organization_id")
        rows = Organization.objects.filter(pk__in=mine, deleted_at__isnull=True)
        return keyset_page(request, rows, node_document, filters={"q": text_filter("name", "slug")})

    def post(self, request: Request) -> Response:
        body = self.read(NodeInput)
        node = services.create_organization(actor=self.principal.ref, **body)
        return tagged(request, node_document(node), str(node.rev), status=201)


class OrganizationView(_NodeView):
    """One organization."""

    level: ClassVar[str] = "organization"
    permissions: ClassVar[Mapping[str, Permission]] = {
        "GET": Permission.GLANCE_ORG,
        **dict.fromkeys(("PUT", "PATCH", "DELETE"), Permission.MANAGE_ORG_MEMBERSHIPS),
    }


class ProjectsView(ScopedView):
    """GET: the projects of the organization that I may view. POST: a new one."""

    level: ClassVar[str] = "organization"
    permissions: ClassVar[Mapping[str, Permission]] = {
        "GET": Permission.GLANCE_ORG,
        "POST": Permission.MANAGE_PROJECT,
    }

    def get(self, request: Request, org_id: uuid.UUID) -> Response:
        rows = projects_visible_to(self.principal).filter(organization_id=org_id)
        return keyset_page(request, rows, node_document, filters={"q": text_filter("name", "slug")})

    def post(self, request: Request, org_id: uuid.UUID) -> Response:
        body = self.read(NodeInput)
        node = services.create_project(actor=self.principal.ref, organization=self.scope.organization, **body)
        return tagged(request, node_document(node), str(node.rev), status=201)


class ProjectView(_NodeView):
    """One project."""

    level: ClassVar[str] = "project"
    permissions: ClassVar[Mapping[str, Permission]] = {
        "GET": Permission.VIEW_PROJECT,
        **dict.fromkeys(("PUT", "PATCH", "DELETE"), Permission.MANAGE_PROJECT),
    }


class EnvironmentsView(ScopedView):
    """GET: the environments of the project. POST: a new one."""

    level: ClassVar[str] = "project"
    permissions: ClassVar[Mapping[str, Permission]] = {
        "GET": Permission.VIEW_PROJECT,
        "POST": Permission.MANAGE_PROJECT,
    }

    def get(self, request: Request, org_id: uuid.UUID, project_id: uuid.UUID) -> Response:
        rows = environments_visible_to(self.principal).filter(project_id=project_id)
        return keyset_page(request, rows, node_document, filters={"q": text_filter("name", "slug")})

    def post(self, request: Request, org_id: uuid.UUID, project_id: uuid.UUID) -> Response:
        body = self.read(EnvironmentInput)
        project = self.scope.project
        assert project is not None
        node = services.create_environment(actor=self.principal.ref, project=project, **body)
        return tagged(request, node_document(node), str(node.rev), status=201)


class EnvironmentView(_NodeView):
    """One environment."""

    level: ClassVar[str] = "environment"
    permissions: ClassVar[Mapping[str, Permission]] = {
        "GET": Permission.VIEW_ENVIRONMENT,
        **dict.fromkeys(("PUT", "PATCH", "DELETE"), Permission.MANAGE_ENVIRONMENT),
    }
