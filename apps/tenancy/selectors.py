"""Queries on the tree."""

from __future__ import annotations

import uuid
from typing import Any, TypeVar

from django.db import models

from apps.core.db import lock_rows, require_locked, require_row
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.scope import Scope

M = TypeVar("M", bound=models.Model)


def scope_of(node: Organization | Project | Environment) -> Scope:
    """Return the scope whose deepest node is `node`."""
    if isinstance(node, Environment):
        return Scope(node.project.organization, node.project, node)
    if isinstance(node, Project):
        return Scope(node.organization, node)
    return Scope(node)


Node = Organization | Project | Environment


def _path_to_parent(model: type[models.Model], node: type[models.Model]) -> list[str] | None:
    """Return the chain of cascading foreign keys from `model` to `node`, or None."""
    for relation in node._meta.related_objects:
        child = relation.related_model
        if relation.on_delete is not models.CASCADE or not isinstance(child, type):
            continue
        if child is model:
            return [relation.field.name]
        if child in (Project, Environment) and (way := _path_to_parent(model, child)) is not None:
            return [*way, relation.field.name]
    return None


def rows_below(node: Node, model: type[models.Model]) -> models.QuerySet[Any] | None:
    """Return the rows of `model` that are deleted with `node`, except those of nodes that are deleted already; or None
    if `model`

    does not depend on it.
    """
    way = _path_to_parent(model, type(node))
    if way is None:
        return None
    alive = {f"{'__'.join(way[:depth])}__deleted_at__isnull": True for depth in range(1, len(way))}
    if model in (Project, Environment):
        alive["deleted_at__isnull"] = True
    return model._base_manager.filter(**{"__".join(way): node}, **alive)


def resolve(
    organization_id: uuid.UUID, project_id: uuid.UUID | None = None, environment_id: uuid.UUID | None = None
) -> Scope:
    """Return the scope of these ids in one query. Raises NotFound if one is missing, deleted, or not a child of the
    other."""
    if environment_id is not None and project_id is not None:
        environments = Environment.objects.alive().select_related("project__organization")
        within = {"project_id": project_id, "project__organization_id": organization_id}
        return scope_of(require_row(environments, pk=environment_id, **within))
    if project_id is not None:
        projects = Project.objects.alive().select_related("organization")
        return scope_of(require_row(projects, pk=project_id, organization_id=organization_id))
    return scope_of(require_row(Organization.objects.alive(), pk=organization_id))


def require_with_path(
    rows: models.QuerySet[M],
    row_id: uuid.UUID,
    *,
    organization_id: uuid.UUID,
    project_id: uuid.UUID,
    environment_id: uuid.UUID,
) -> M:
    """Return the row of an environment with its environment, project and organization, in one query.

    Raises NotFound if it is not in `rows`, if one of these ids is not that of its path, or if the environment is deleted.
    """
    return require_row(
        rows.select_related("environment__project__organization"),
        pk=row_id,
        environment_id=environment_id,
        environment__deleted_at__isnull=True,
        environment__project_id=project_id,
        environment__project__organization_id=organization_id,
    )


def lock_organization(organization_id: uuid.UUID) -> Organization:
    """Lock and return an organization that is not deleted, until the transaction ends. Raises NotFound."""
    return require_locked(Organization, pk=organization_id, deleted_at__isnull=True)


def lock_environment(environment_id: uuid.UUID) -> Environment:
    """Lock and return an environment that is not deleted, until the transaction ends. Raises NotFound.

    Every write to an environment's objects takes this lock first, so that two writes are serialized.
    """
    environment: Environment = require_locked(
        Environment.objects.alive().select_related("project__organization"), pk=environment_id
    )
    return environment


def lock_environments(organization_id: uuid.UUID) -> list[Environment]:
    """Lock and return every environment of the organization, in one order, for changes that affect all its deployments."""
    living = Environment.objects.alive().filter(project__organization_id=organization_id)
    return lock_rows(living.select_related("project__organization").order_by("pk"))
