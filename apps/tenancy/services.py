"""Create, change and delete nodes of the tree."""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

from django.db import IntegrityError, models, transaction
from django.db.models import Q

from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.db import lock_rows, require_locked
from apps.core.errors import BadRequest, Conflict, FieldError, PreconditionFailed
from apps.core.json_equality import equal_json
from apps.runtime.faults import fault_point
from apps.tenancy import registry
from apps.tenancy.models import SLUG, Environment, Organization, Posture, Project
from apps.tenancy.registry import EnvironmentSettings, SettingsChange
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environments, lock_organization, scope_of

N = TypeVar("N", bound=Organization | Project | Environment)


def slug_from(name: str) -> str:
    """Derive a slug from a name: ASCII letters and digits, hyphens for the rest. Empty if nothing remains."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:63].strip("-")


NAME_LENGTH = 200
_JOINERS = "\u200c\u200d"
"""Format characters that Persian and Indic spelling, and some emoji, need between other characters."""
_BLANKS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and symbols that render as blank."""


def _hidden(character: str) -> bool:
    """Return whether `character` is invisible on a page: a control, a format, a line separator, or a surrogate."""
    return character not in _JOINERS and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _checked_name(name: str) -> str:
    """Return `name` in Unicode NFC, so that names that look the same are equal. Raises BadRequest if it is not
    readable."""
    text = unicodedata.normalize("NFC", name).strip()
    problem = ""
    if not text or len(text) > NAME_LENGTH:
        problem = f"A name has 1 to {NAME_LENGTH} characters."
    elif any(map(_hidden, text)):
        problem = "A name must be one line of visible characters."
    elif not any(unicodedata.category(each)[0] in "LNPS" and each not in _BLANKS for each in text):
        problem = "A name must contain a letter, a digit or a symbol."
    if problem:
        raise BadRequest.about("/name", "invalid", problem)
    return text


def _checked_slug(slug: str) -> str:
    if not re.fullmatch(SLUG.regex, slug):
        raise BadRequest.about("/slug", "invalid", str(SLUG.message))
    return slug


def _free_slug(siblings: models.QuerySet[Any], name: str, level: str) -> str:
    """Return the first slug derived from `name` that is free among `siblings`. A name without Latin letters or digits
    gets its level's name as slug.
    """
    base = slug_from(name) or level
    taken = set(siblings.filter(slug__startswith=base[:58]).values_list("slug", flat=True))
    if base not in taken:
        return base
    return next(s for n in range(2, len(taken) + 3) if (s := f"{base[:58]}-{n}") not in taken)


def _slug_taken(slug: str) -> Conflict:
    return Conflict.about("/slug", "slug_taken", f"The slug '{slug}' is already taken.")


def _insert(node: N) -> N:
    try:
        with transaction.atomic():
            node.save(force_insert=True)
    except IntegrityError:
        raise _slug_taken(node.slug) from None
    return node


DERIVED_SLUG_ATTEMPTS = 20


def _insert_derived(name: str, maker: uuid.UUID | None) -> Organization:
    """Insert an organization whose slug is derived from its name. No parent row can be locked, so a concurrent request
    may take the slug first; then the next free slug is used.
    """
    for left in reversed(range(DERIVED_SLUG_ATTEMPTS)):
        slug = _free_slug(Organization.objects.alive(), name, Organization.level)
        try:
            return _insert(Organization(name=name, slug=slug, created_by=maker))
        except Conflict:
            if not left:
                raise
    raise AssertionError("unreachable")


def _announce_created(actor: ActorRef, node: N) -> None:
    scope = scope_of(node)
    for hook in registry.created_hooks[node.level]:
        hook(actor=actor, node=node)
    audit.record_in(
        scope,
        action=f"{node.level}.created",
        actor=actor,
        target=f"{node.level}:{node.pk}",
        details={"name": node.name, "slug": node.slug},
    )


@transaction.atomic
def create_organization(*, actor: ActorRef, name: str, slug: str | None = None) -> Organization:
    """Create an organization, with what other apps add (its first member and its first signing key).

    Raises BadRequest on a bad name or slug, and Conflict `slug_taken`.
    """
    name = _checked_name(name)
    maker = actor.acts_for
    if slug is not None:
        node = _insert(Organization(name=name, slug=_checked_slug(slug), created_by=maker))
    else:
        node = _insert_derived(name, maker)
    _announce_created(actor, node)
    return node


@transaction.atomic
def create_project(*, actor: ActorRef, organization: Organization, name: str, slug: str | None = None) -> Project:
    """Create a project under `organization`. Raises as `create_organization`, and NotFound if the parent is deleted."""
    name = _checked_name(name)
    parent = lock_organization(organization.pk)
    siblings = Project.objects.filter(organization=parent, deleted_at__isnull=True)
    chosen = _checked_slug(slug) if slug is not None else _free_slug(siblings, name, Project.level)
    node = _insert(Project(organization=parent, name=name, slug=chosen))
    _announce_created(actor, node)
    return node


def _complete(change: SettingsChange) -> EnvironmentSettings:
    _check_limits(change.after)
    _check_retention(change.after.retention_days)
    after = replace(change.after, retention_days={**DEFAULT_RETENTION_DAYS, **change.after.retention_days})
    for check in registry.settings_checks:
        after = check(replace(change, after=after))
    return after


LIMITS = {
    "max_in_flight_deployments": (1, 1000),
    "enrollments_per_minute": (1, 600),
    "agent_upgrade_percent": (0, 100),
}
"""{setting of an environment: its lowest and its highest number}."""


def _check_limits(settings: EnvironmentSettings) -> None:
    problems = [
        FieldError(f"/{name}", "out_of_range", f"Must be an integer from {low} to {high}.")
        for name, (low, high) in LIMITS.items()
        if not low <= getattr(settings, name) <= high
    ]
    if problems:
        raise BadRequest("The limits are not valid.", code="invalid_input", errors=problems)


ARTIFACT_TYPES = ("incident_bundle", "snapshot", "diagnostic")
DEFAULT_RETENTION_DAYS = {"incident_bundle": 90, "snapshot": 30, "diagnostic": 30}


def _check_retention(days: Mapping[str, Any]) -> None:
    problems = [
        FieldError(f"/retention_days/{name}", "invalid", "Must map artifact types to integers from 1 to 3650.")
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
    retention_days: Mapping[str, Any] | None = None,
    **limits: int,
) -> Environment:
    """A new environment under `project`; what is left out of `policy` and `retention_days` gets the posture's default.

    `limits` are some of `LIMITS`; the others get their default.
    """
    name = _checked_name(name)
    if posture not in Posture.values:
        raise BadRequest(
            "Unknown posture.",
            code="invalid_input",
            errors=[FieldError("/posture", "invalid_choice", "Must be one of dev, staging, prod.")],
        )
    parent = require_locked(Project.objects.select_related("organization"), pk=project.pk, deleted_at__isnull=True)
    siblings = Environment.objects.filter(project=parent, deleted_at__isnull=True)
    chosen = _checked_slug(slug) if slug is not None else _free_slug(siblings, name, Environment.level)
    wanted = EnvironmentSettings(
        posture=posture,
        policy=dict(policy or {}),
        retention_days=dict(retention_days or {}),
        **limits,
    )
    explicit = frozenset(f"policy.{key}" for key in (policy or {}))
    settings = _complete(SettingsChange(actor, Scope(parent.organization, parent), None, wanted, explicit))
    node = _insert(Environment(project=parent, name=name, slug=chosen, **asdict(settings)))
    _announce_created(actor, node)
    return node


def _locked(node: N, expected_rev: int | None = None) -> N:
    """Lock and return `node`. Raises NotFound, and PreconditionFailed if `expected_rev` is not the stored revision."""
    rows = type(node).objects.filter(pk=node.pk, deleted_at__isnull=True)
    if isinstance(node, Project):
        rows = rows.select_related("organization")
    elif isinstance(node, Environment):
        rows = rows.select_related("project__organization")
    fresh: N = require_locked(rows)
    if expected_rev is not None and fresh.rev != expected_rev:
        raise PreconditionFailed("It has changed since you read it.")
    return fresh


def _lock_with_namesake(node: Organization | Project | Environment, slug: str) -> None:
    """Lock `node` and its sibling that has `slug`, in the order of their keys.

    Two nodes that get each other's slug at one moment would otherwise wait for each other in the index.
    """
    namesake = Q(slug=slug)
    if isinstance(node, Project):
        namesake &= Q(organization=node.organization_id)
    elif isinstance(node, Environment):
        namesake &= Q(project=node.project_id)
    lock_rows(type(node).objects.filter(Q(pk=node.pk) | namesake, deleted_at__isnull=True).order_by("pk"))


def settings_of(environment: Environment) -> EnvironmentSettings:
    """Return the settings of an environment as one value."""
    names = (each.name for each in fields(EnvironmentSettings))
    return EnvironmentSettings(**{name: deepcopy(getattr(environment, name)) for name in names})


@transaction.atomic
def update_node(*, actor: ActorRef, node: N, expected_rev: int | None = None, **changes: Any) -> N:
    """Change a node's `name` and `slug`, and of an environment `policy`, `retention_days` and its `LIMITS`.

    `changes` holds the new values; objects replace the stored ones as a whole, with defaults for what they leave out. Nothing is
    written if nothing differs.
    Raises Conflict `slug_taken` or `posture_fixed`, and PreconditionFailed if `expected_rev` is not the stored
    revision.
    """
    if "slug" in changes:
        _lock_with_namesake(node, changes["slug"])
    fresh = _locked(node, expected_rev)
    wanted = dict(changes)
    if wanted.get("name", fresh.name) != fresh.name:
        wanted["name"] = _checked_name(wanted["name"])
    if "slug" in wanted:
        wanted["slug"] = _checked_slug(wanted["slug"])
    if isinstance(fresh, Environment):
        if wanted.pop("posture", fresh.posture) != fresh.posture:
            raise Conflict("The posture of an environment can't be changed.", code="posture_fixed")
        before = settings_of(fresh)
        keys = ("policy", "retention_days", *LIMITS)
        after = replace(before, **{key: wanted[key] for key in keys if key in wanted})
        if not equal_json(asdict(after), asdict(before)):
            explicit = frozenset(
                f"policy.{key}" for key, value in after.policy.items() if before.policy.get(key) != value
            )
            after = _complete(SettingsChange(actor, scope_of(fresh), before, after, explicit))
        for key in keys:
            wanted[key] = getattr(after, key)
    changed = {key: value for key, value in wanted.items() if not equal_json(getattr(fresh, key), value)}
    if not changed:
        return fresh
    before_values = {key: getattr(fresh, key) for key in changed}
    try:
        with transaction.atomic():
            rows = type(fresh).objects.filter(pk=fresh.pk, rev=fresh.rev, deleted_at__isnull=True)
            rows.update(**changed, rev=fresh.rev + 1, updated_at=clock.now())
    except IntegrityError:
        raise _slug_taken(str(changed.get("slug"))) from None
    updated = _locked(fresh)
    scope = scope_of(updated)
    audit.record_in(
        scope,
        action=f"{updated.level}.updated",
        actor=actor,
        target=f"{updated.level}:{updated.pk}",
        details={"before": before_values, "after": changed},
    )
    return updated


def _lock_below(node: Organization | Project | Environment) -> None:
    """Lock every node below `node`, parents first, so that a concurrent creation below it is either visible or refused."""
    if isinstance(node, Organization):
        lock_rows(Project.objects.filter(organization=node, deleted_at__isnull=True).order_by("pk"))
        lock_environments(node.pk)
    elif isinstance(node, Project):
        lock_rows(Environment.objects.filter(project=node, deleted_at__isnull=True).order_by("pk"))


def delete_node(*, actor: ActorRef, scope: Scope, force: bool = False, expected_rev: int | None = None) -> bool:
    """Delete a node and everything below it, for the API and the admin.

    The tombstone is one transaction: the node is 404 from then on, its slug is free, credentials below it are revoked.
    Rows and files are deleted after it. Returns True if all is deleted, False if a background job continues. Raises
    Conflict `deletion_blocked` with the reasons, unless `force`, and PreconditionFailed if `expected_rev` is not the stored
    revision.
    """
    with transaction.atomic():
        fresh = scope_of(_locked(scope.node, expected_rev))
        _lock_below(fresh.node)
        blockers = [text for guard in registry.deletion_guards for text in guard(fresh)]
        if blockers and not force:
            raise Conflict(
                "It contains work in progress. Repeat with force to delete it anyway.",
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
        for hook in registry.deleted_hooks:
            hook(fresh)
        audit.record_in(
            fresh,
            action=f"{node.level}.deleted",
            actor=actor,
            target=f"{node.level}:{node.pk}",
            details={"name": node.name, "slug": node.slug, "forced": bool(blockers)},
        )
        fault_point("tenancy.delete.before_commit")
    fault_point("tenancy.delete.tombstoned")
    return registry.purge(fresh)


def node_by_id(level: str, node_id: uuid.UUID) -> Organization | Project | Environment | None:
    """Return the node of a level by id, also a deleted one: for the purge of tombstones."""
    model: Any = {"organization": Organization, "project": Project, "environment": Environment}[level]
    found: Organization | Project | Environment | None = model.objects.filter(pk=node_id).first()
    return found
