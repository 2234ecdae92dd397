"""Making, renaming and deleting nodes of the tree."""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from django.db import IntegrityError, models, transaction

from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.db import lock_row, lock_rows
from apps.core.errors import BadRequest, Conflict, FieldError, NotFound, PreconditionFailed
from apps.runtime.faults import fault_point
from apps.tenancy import registry
from apps.tenancy.models import SLUG, Environment, Organization, Posture, Project
from apps.tenancy.registry import EnvironmentSettings
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environments, scope_of

N = TypeVar("N", bound=Organization | Project | Environment)


def slug_from(name: str) -> str:
    """A slug derived from a free-text name: ASCII letters and digits, the rest hyphens; `x` when nothing is left."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:63].strip("-") or "x"


def _checked_name(name: str) -> str:
    text = name.strip()
    if not text or len(text) > 200:
        raise BadRequest(
            "A name has 1 to 200 characters.",
            code="invalid_input",
            errors=[FieldError("/name", "invalid", "A name has 1 to 200 characters.")],
        )
    return text


def _checked_slug(slug: str) -> str:
    if not re.fullmatch(SLUG.regex, slug):
        raise BadRequest(
            str(SLUG.message),
            code="invalid_input",
            errors=[FieldError("/slug", "invalid", str(SLUG.message))],
        )
    return slug


def _free_slug(siblings: models.QuerySet[Any], name: str) -> str:
    base = slug_from(name)
    taken = set(siblings.filter(slug__startswith=base[:58]).values_list("slug", flat=True))
    if base not in taken:
        return base
    return next(s for n in range(2, len(taken) + 3) if (s := f"{base[:58]}-{n}") not in taken)


def _insert(node: N) -> N:
    try:
        with transaction.atomic():
            node.save(force_insert=True)
    except IntegrityError:
        raise Conflict(f"The slug '{node.slug}' is taken here.", code="slug_taken") from None
    return node


def _announce_created(actor: ActorRef, node: N) -> None:
    scope = scope_of(node)
    for hook in registry.created_hooks(node.level):
        hook(actor=actor, node=node)
    audit.record(
        organization_id=scope.organization_id,
        action=f"{node.level}.created",
        actor=actor,
        target=f"{node.level}:{node.pk}",
        scope=scope.as_dict(),
        details={"name": node.name, "slug": node.slug},
    )


@transaction.atomic
def create_organization(*, actor: ActorRef, name: str, slug: str | None = None) -> Organization:
    """A new organization, with what upper rooms add (its first member and its first signing key).

    Raises BadRequest on a bad name or slug, Conflict `slug_taken`.
    """
    name = _checked_name(name)
    siblings = Organization.objects.alive()
    chosen = _checked_slug(slug) if slug is not None else _free_slug(siblings, name)
    node = _insert(Organization(name=name, slug=chosen))
    _announce_created(actor, node)
    return node


@transaction.atomic
def create_project(*, actor: ActorRef, organization: Organization, name: str, slug: str | None = None) -> Project:
    """A new project under `organization`. Raises as `create_organization`; NotFound when the parent is gone."""
    name = _checked_name(name)
    parent = lock_row(Organization.objects.filter(pk=organization.pk, deleted_at__isnull=True))
    if parent is None:
        raise NotFound()
    siblings = Project.objects.filter(organization=parent, deleted_at__isnull=True)
    chosen = _checked_slug(slug) if slug is not None else _free_slug(siblings, name)
    node = _insert(Project(organization=parent, name=name, slug=chosen))
    _announce_created(actor, node)
    return node


def _complete(
    actor: ActorRef,
    scope: Scope,
    before: EnvironmentSettings | None,
    after: EnvironmentSettings,
    explicit: frozenset[str],
) -> EnvironmentSettings:
    if not 1 <= after.max_in_flight_deployments <= 1000:
        raise BadRequest(
            "A cap is from 1 to 1000.",
            code="invalid_input",
            errors=[FieldError("/max_in_flight_deployments", "out_of_range", "A cap is from 1 to 1000.")],
        )
    _check_retention(after.retention_days)
    for check in registry.settings_checks():
        after = check(actor=actor, scope=scope, before=before, after=after, explicit=explicit)
    return after


ARTIFACT_TYPES = ("incident_bundle", "snapshot", "diagnostic")
DEFAULT_RETENTION_DAYS = {"incident_bundle": 90, "snapshot": 30, "diagnostic": 30}


def _check_retention(days: Mapping[str, Any]) -> None:
    problems = [
        FieldError(f"/retention_days/{name}", "invalid", "Whole days, 1 to 3650, by artifact type.")
        for name, value in days.items()
        if name not in ARTIFACT_TYPES or isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 3650
    ]
    if problems:
        raise BadRequest("The retention is not valid.", code="invalid_input", errors=problems)


@transaction.atomic
def create_environment(
    *,
    actor: ActorRef,
    project: Project,
    name: str,
    posture: str,
    slug: str | None = None,
    policy: Mapping[str, Any] | None = None,
    max_in_flight_deployments: int = 4,
    retention_days: Mapping[str, Any] | None = None,
) -> Environment:
    """A new environment under `project`; what is left out of `policy` and `retention_days` gets the posture's default."""
    name = _checked_name(name)
    if posture not in Posture.values:
        raise BadRequest(
            "An unknown posture.",
            code="invalid_input",
            errors=[FieldError("/posture", "invalid_choice", "One of dev, staging, prod.")],
        )
    parent = lock_row(Project.objects.select_related("organization").filter(pk=project.pk, deleted_at__isnull=True))
    if parent is None:
        raise NotFound()
    siblings = Environment.objects.filter(project=parent, deleted_at__isnull=True)
    chosen = _checked_slug(slug) if slug is not None else _free_slug(siblings, name)
    wanted = EnvironmentSettings(
        posture=posture,
        policy=dict(policy or {}),
        max_in_flight_deployments=max_in_flight_deployments,
        retention_days={**DEFAULT_RETENTION_DAYS, **dict(retention_days or {})},
    )
    explicit = frozenset(f"policy.{key}" for key in (policy or {}))
    settings = _complete(actor, Scope(parent.organization, parent), None, wanted, explicit)
    node = _insert(
        Environment(
            project=parent,
            name=name,
            slug=chosen,
            posture=posture,
            policy=settings.policy,
            max_in_flight_deployments=settings.max_in_flight_deployments,
            retention_days=settings.retention_days,
        )
    )
    _announce_created(actor, node)
    return node


def _locked(node: N) -> N:
    rows = type(node).objects.filter(pk=node.pk, deleted_at__isnull=True)
    if isinstance(node, Project):
        rows = rows.select_related("organization")
    elif isinstance(node, Environment):
        rows = rows.select_related("project__organization")
    fresh: N | None = lock_row(rows)
    if fresh is None:
        raise NotFound()
    return fresh


def settings_of(environment: Environment) -> EnvironmentSettings:
    """The settings of an environment as one value."""
    return EnvironmentSettings(
        posture=environment.posture,
        policy=dict(environment.policy),
        max_in_flight_deployments=environment.max_in_flight_deployments,
        retention_days=dict(environment.retention_days),
    )


@transaction.atomic
def update_node(*, actor: ActorRef, node: N, expected_rev: int | None = None, **changes: Any) -> N:
    """Change `name`, `slug`, and of an environment `policy`, `max_in_flight_deployments`, `retention_days`.

    `changes` holds the wanted values; objects replace the stored ones whole. Nothing is written when nothing differs.
    Raises Conflict `slug_taken` or `posture_fixed`; PreconditionFailed is the caller's (`expected_rev` guards the write).
    """
    fresh = _locked(node)
    if expected_rev is not None and fresh.rev != expected_rev:
        raise PreconditionFailed("It has changed since you read it.")
    wanted = dict(changes)
    if "name" in wanted:
        wanted["name"] = _checked_name(wanted["name"])
    if "slug" in wanted:
        wanted["slug"] = _checked_slug(wanted["slug"])
    if isinstance(fresh, Environment):
        if wanted.pop("posture", fresh.posture) != fresh.posture:
            raise Conflict("The posture is fixed when an environment is made.", code="posture_fixed")
        before = settings_of(fresh)
        keys = ("policy", "max_in_flight_deployments", "retention_days")
        after = replace(before, **{key: wanted[key] for key in keys if key in wanted})
        if after != before:
            explicit = frozenset(
                f"policy.{key}" for key, value in after.policy.items() if before.policy.get(key) != value
            )
            after = _complete(actor, scope_of(fresh), before, after, explicit)
        for key in keys:
            wanted[key] = getattr(after, key)
    changed = {key: value for key, value in wanted.items() if getattr(fresh, key) != value}
    if not changed:
        return fresh
    before_values = {key: getattr(fresh, key) for key in changed}
    try:
        with transaction.atomic():
            rows = type(fresh).objects.filter(pk=fresh.pk, rev=fresh.rev, deleted_at__isnull=True)
            rows.update(**changed, rev=fresh.rev + 1, updated_at=clock.now())
    except IntegrityError:
        raise Conflict(f"The slug '{changed.get('slug')}' is taken here.", code="slug_taken") from None
    updated = _locked(fresh)
    scope = scope_of(updated)
    audit.record(
        organization_id=scope.organization_id,
        action=f"{updated.level}.updated",
        actor=actor,
        target=f"{updated.level}:{updated.pk}",
        scope=scope.as_dict(),
        details={"before": before_values, "after": changed},
    )
    return updated


def _lock_below(node: Organization | Project | Environment) -> None:
    """Lock every living node below `node`, parents first: what is being made there is there, or is refused, by the time
    one looks at it."""
    if isinstance(node, Organization):
        lock_rows(Project.objects.filter(organization=node, deleted_at__isnull=True).order_by("pk"))
        lock_environments(node.pk)
    elif isinstance(node, Project):
        lock_rows(Environment.objects.filter(project=node, deleted_at__isnull=True).order_by("pk"))


def delete_node(*, actor: ActorRef, scope: Scope, force: bool = False) -> bool:
    """Delete a node and all below it: the one way to do it, for the API and the admin alike.

    The tombstone (404 to everyone from then on, slug freed, credentials below it dead) is one transaction; the rows
    and files go after it. True when all is gone on return, False when a chore finishes it. Raises Conflict
    `deletion_blocked` naming what stands in the way, unless `force`.
    """
    with transaction.atomic():
        fresh = scope_of(_locked(scope.node))
        _lock_below(fresh.node)
        blockers = [text for guard in registry.deletion_guards() for text in guard(fresh)]
        if blockers and not force:
            raise Conflict(
                "There are things in flight below it. Repeat with force to delete all the same.",
                code="deletion_blocked",
                extra={"blockers": blockers},
            )
        now = clock.now()
        node = fresh.node
        if isinstance(node, Organization):
            Environment.objects.filter(project__organization=node, deleted_at__isnull=True).update(deleted_at=now)
            Project.objects.filter(organization=node, deleted_at__isnull=True).update(deleted_at=now)
        elif isinstance(node, Project):
            Environment.objects.filter(project=node, deleted_at__isnull=True).update(deleted_at=now)
        type(node).objects.filter(pk=node.pk).update(deleted_at=now)
        for hook in registry.deleted_hooks():
            hook(fresh)
        audit.record(
            organization_id=fresh.organization_id,
            action=f"{node.level}.deleted",
            actor=actor,
            target=f"{node.level}:{node.pk}",
            scope=fresh.as_dict(),
            details={"name": node.name, "slug": node.slug, "forced": bool(blockers)},
        )
        fault_point("tenancy.delete.before_commit")
    fault_point("tenancy.delete.tombstoned")
    return registry.purge(fresh)


def node_by_id(level: str, node_id: uuid.UUID) -> Organization | Project | Environment | None:
    """The node of a level by id, dead or alive: for the purge, which works on tombstones."""
    model: Any = {"organization": Organization, "project": Project, "environment": Environment}[level]
    found: Organization | Project | Environment | None = model.objects.filter(pk=node_id).first()
    return found
