"""Supersession between deployments, and the environment's current deployment."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from django.db.models import Exists, OuterRef, Q

from apps.deployments.models import Deployment, DeploymentStatus, Target, TargetStatus
from apps.tenancy.models import Environment

S, T = DeploymentStatus, TargetStatus

HOLDS = Q(status=T.ACTIVATED) | Q(status=T.UNREACHABLE, deployment__status=S.ACTIVE)
"""Condition for a target that its deployment owns: confirmed, or unreachable in a deployment that became active without it."""


def deployments_with_targets(deployment_ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """The deployments of `deployment_ids` that own at least one target which no newer deployment took over."""
    newer = Target.objects.filter(
        HOLDS,
        agent_id=OuterRef("agent_id"),
        sequence__gt=OuterRef("sequence"),
        deployment__rolling_back_at__isnull=True,
    )
    held = Target.objects.filter(
        HOLDS, ~Exists(newer), deployment_id__in=list(deployment_ids), agent_gone_at__isnull=True
    )
    return set(held.values_list("deployment_id", flat=True))


def refresh_superseded(deployment: Deployment) -> None:
    """Refresh `superseded_by` of the deployments before `deployment`, after it took over or released targets."""
    targets = Target.objects.filter(deployment=deployment)
    earlier = Deployment.objects.filter(
        environment=deployment.environment,
        status__in=(S.ACTIVE, S.FAILED),
        rolling_back_at__isnull=True,
        sequence__lt=deployment.sequence,
    )
    if deployment.rolling_back_at is None:
        agents = targets.filter(HOLDS).values("agent_id")
        shared = Target.objects.filter(HOLDS, deployment=OuterRef("pk"), agent_id__in=agents)
        met = list(earlier.filter(Exists(shared), superseded_by__isnull=True).values_list("pk", flat=True))
        taken = set(met) - deployments_with_targets(met)
        Deployment.objects.filter(pk__in=taken, superseded_by__isnull=True).update(superseded_by=deployment.pk)
        return
    previous = targets.filter(previous_deployment_id__isnull=False).values("previous_deployment_id")
    given_back = list(
        earlier.filter(Q(superseded_by=deployment.pk) | Q(pk__in=previous), superseded_by__isnull=False).values_list(
            "pk", flat=True
        )
    )
    Deployment.objects.filter(pk__in=deployments_with_targets(given_back)).update(superseded_by=None)


def refresh_left(environment: Environment, deployment_ids: Iterable[uuid.UUID]) -> None:
    """Refresh `superseded_by` of `deployment_ids` after one of their agents was removed.

    A deployment that owns no target any more is superseded by the newest that took one over. Without such, it is unchanged.
    """
    left = Deployment.objects.filter(
        pk__in=list(deployment_ids),
        status__in=(S.ACTIVE, S.FAILED),
        rolling_back_at__isnull=True,
        superseded_by__isnull=True,
    )
    candidates: list[uuid.UUID] = list(left.values_list("pk", flat=True))
    for deployment_id in sorted(set(candidates) - deployments_with_targets(candidates)):
        mine = Target.objects.filter(HOLDS, deployment=deployment_id)
        taker = (
            Target.objects.filter(
                HOLDS,
                agent_id__in=mine.values("agent_id"),
                sequence__gt=mine.order_by("-sequence").values("sequence")[:1],
                deployment__rolling_back_at__isnull=True,
            )
            .order_by("-sequence")
            .values_list("deployment_id", flat=True)
            .first()
        )
        if taker is not None:
            Deployment.objects.filter(pk=deployment_id, superseded_by__isnull=True).update(superseded_by=taker)
    refresh_current(environment)


def refresh_current(environment: Environment) -> None:
    """Set the environment's current deployment: the active one with the highest sequence that is not superseded."""
    current = (
        Deployment.objects.filter(environment=environment, status=S.ACTIVE, superseded_by__isnull=True)
        .order_by("-sequence")
        .values_list("pk", flat=True)
        .first()
    )
    if current != environment.current_deployment_id:
        Environment.objects.filter(pk=environment.pk).update(current_deployment_id=current)
        environment.current_deployment_id = current
