"""Reads of deployments, and what an agent shall run."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from django.db.models import Count

from apps.access.principals import Principal
from apps.agents.models import Agent
from apps.agents.registry import Desired
from apps.core.errors import NotFound
from apps.deployments.desired import Assigned, desired_of
from apps.deployments.models import (
    IN_FLIGHT,
    ConfigBundle,
    Confirmation,
    Deployment,
    DeploymentEvent,
    DeploymentQuerySet,
    DeploymentStatus,
    ScopedQuerySet,
    Target,
    TargetStatus,
)
from apps.tenancy.scope import Scope

WALK_STEP = 8


def walk(agent_id: uuid.UUID) -> Iterator[Assigned]:
    """All that the agent was ever assigned, highest sequence first, read a few rows at a time."""
    rows = (
        Target.objects.filter(agent_id=agent_id, sequence__isnull=False)
        .order_by("-sequence")
        .values_list(
            "deployment_id",
            "sequence",
            "deployment__bundle_sha256",
            "deployment__status",
            "status",
            "deployment__rolling_back_at",
            "rollback_at",
        )
    )
    start = 0
    while True:
        step = list(rows[start : start + WALK_STEP])
        for deployment_id, sequence, digest, deployment_status, status, rolling_back_at, rollback_at in step:
            if sequence is not None:
                yield Assigned(deployment_id, sequence, digest, deployment_status, status, rolling_back_at, rollback_at)
        if len(step) < WALK_STEP:
            return
        start += WALK_STEP


def desired(agent: Agent) -> Desired:
    """What `agent` shall run now. One query in the common case."""
    return desired_of(walk(agent.pk))


def base_of(
    environment_id: uuid.UUID, agent_ids: Sequence[uuid.UUID], *, aside: uuid.UUID | None = None
) -> dict[str, str | None]:
    """{agent id: the deployment it stands on}, None for nothing: what an approval is decided against.

    That is the deployment that is building or deploying on it (`aside` is left out), else the one it last confirmed.
    """
    base: dict[str, str | None] = {str(agent_id): None for agent_id in agent_ids}
    confirmed = Confirmation.objects.filter(environment_id=environment_id, agent_id__in=agent_ids)
    for agent_id, deployment_id in confirmed.values_list("agent_id", "deployment_id"):
        base[str(agent_id)] = str(deployment_id) if deployment_id else None
    under_way = Target.objects.filter(
        deployment__environment_id=environment_id,
        deployment__status__in=(DeploymentStatus.BUILDING, DeploymentStatus.DEPLOYING),
        agent_id__in=agent_ids,
    )
    if aside is not None:
        under_way = under_way.exclude(deployment_id=aside)
    for agent_id, deployment_id in under_way.values_list("agent_id", "deployment_id"):
        base[str(agent_id)] = str(deployment_id)
    return base


def bundles(scope: Scope) -> ScopedQuerySet[ConfigBundle]:
    """The environment's config bundles."""
    return ConfigBundle.objects.filter(environment=scope.here)


def get_bundle(scope: Scope, bundle_id: uuid.UUID) -> ConfigBundle:
    """One config bundle of the environment. NotFound otherwise."""
    bundle = bundles(scope).filter(pk=bundle_id).first()
    if bundle is None:
        raise NotFound()
    return bundle


def deployments(scope: Scope) -> DeploymentQuerySet:
    """The environment's deployments."""
    rows: DeploymentQuerySet = Deployment.objects.filter(environment=scope.here)
    return rows


def get_deployment(scope: Scope, deployment_id: uuid.UUID) -> Deployment:
    """One deployment of the environment. NotFound otherwise."""
    deployment: Deployment | None = deployments(scope).filter(pk=deployment_id).first()
    if deployment is None:
        raise NotFound()
    return deployment


def visible_deployments(principal: Principal) -> DeploymentQuerySet:
    """Every deployment in an environment that `principal` may see."""
    return Deployment.objects.all().visible_to(principal)


def target_counts(deployment_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, dict[str, int]]:
    """{deployment: {total, and a count per target status}} in one query."""
    empty: Counter[str] = Counter(dict.fromkeys(TargetStatus.values, 0))
    counts: dict[uuid.UUID, Counter[str]] = {pk: Counter(empty) for pk in deployment_ids}
    rows = (
        Target.objects.filter(deployment_id__in=list(counts))
        .values_list("deployment_id", "status")
        .annotate(n=Count("pk"))
    )
    for deployment_id, status, n in rows:
        counts[deployment_id][status] = n
    return {pk: {"total": sum(of.values()), **{s: of[s] for s in TargetStatus.values}} for pk, of in counts.items()}


def events_of(deployment: Deployment) -> list[DeploymentEvent]:
    """What happened to it, oldest first."""
    return list(DeploymentEvent.objects.filter(deployment=deployment).order_by("pk"))


def targets_of(deployment: Deployment) -> list[Target]:
    """Its targets, by agent name."""
    return list(Target.objects.filter(deployment=deployment).order_by("agent_name", "pk"))


def deletion_blockers(scope: Scope) -> list[str]:
    """The deployments in flight below `scope`, in words: what stands in the way of deleting it."""
    rows = Deployment.objects.filter(status__in=IN_FLIGHT)
    if scope.environment is not None:
        rows = rows.filter(environment=scope.environment)
    elif scope.project is not None:
        rows = rows.filter(environment__project=scope.project)
    else:
        rows = rows.filter(environment__project__organization=scope.organization)
    alive = rows.filter(environment__deleted_at__isnull=True).order_by("pk")
    return [f"deployment {pk} ({status})" for pk, status in alive.values_list("pk", "status")[:50]]


def in_flight_on(agent_id: uuid.UUID) -> list[str]:
    """The deployments in flight that still wait for this agent, in words."""
    rows = Target.objects.filter(agent_id=agent_id, settled_at__isnull=True, deployment__status__in=IN_FLIGHT)
    return [
        f"deployment {pk} ({status})"
        for pk, status in rows.order_by("pk").values_list("deployment_id", "deployment__status")
    ]


def has_in_flight(agent_id: uuid.UUID) -> bool:
    """Is a deployment with this agent as a target in flight?"""
    return Target.objects.filter(agent_id=agent_id, deployment__status__in=IN_FLIGHT).exists()
