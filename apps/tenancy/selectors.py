"""Reads of the tree."""

from __future__ import annotations

import uuid

from apps.core.db import lock_row, lock_rows
from apps.core.errors import NotFound
from apps.core.prepared import Prepared
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.scope import Scope


def scope_of(node: Organization | Project | Environment) -> Scope:
    """The scope that ends at `node`."""
    if isinstance(node, Environment):
        return Scope(node.project.organization, node.project, node)
    if isinstance(node, Project):
        return Scope(node.organization, node)
    return Scope(node)


_environment_at = Prepared(
    lambda organization_id, project_id, environment_id: Environment.objects.select_related(
        "project__organization"
    ).filter(
        pk=environment_id,
        project_id=project_id,
        project__organization_id=organization_id,
        deleted_at__isnull=True,
    )
)
_project_at = Prepared(
    lambda organization_id, project_id: Project.objects.select_related("organization").filter(
        pk=project_id, organization_id=organization_id, deleted_at__isnull=True
    )
)
_organization_at = Prepared(
    lambda organization_id: Organization.objects.filter(pk=organization_id, deleted_at__isnull=True)
)


def resolve(
    organization_id: uuid.UUID, project_id: uuid.UUID | None = None, environment_id: uuid.UUID | None = None
) -> Scope:
    """The living scope of these ids in one query. NotFound when one is missing, deleted or not under the other."""
    node: Organization | Project | Environment | None
    if environment_id is not None and project_id is not None:
        node = _environment_at.first(organization_id, project_id, environment_id)
    elif project_id is not None:
        node = _project_at.first(organization_id, project_id)
    else:
        node = _organization_at.first(organization_id)
    if node is None:
        raise NotFound()
    return scope_of(node)


def lock_environment(environment_id: uuid.UUID) -> Environment:
    """The living environment, its row locked until the transaction ends. NotFound when it is gone.

    Every write to what an environment holds begins here, so that two of them never interleave.
    """
    environment: Environment | None = lock_row(
        Environment.objects.select_related("project__organization").filter(pk=environment_id, deleted_at__isnull=True)
    )
    if environment is None:
        raise NotFound()
    return environment


def lock_environments(organization_id: uuid.UUID) -> list[Environment]:
    """Every living environment of the organization, locked in one order: for what concerns all that it deploys."""
    living = Environment.objects.filter(project__organization_id=organization_id, deleted_at__isnull=True)
    return lock_rows(living.select_related("project__organization").order_by("pk"))
