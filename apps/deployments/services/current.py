"""Who took over from whom, and which deployment is the environment's current one."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from django.db.models import Exists, OuterRef, Q

from apps.deployments.models import Deployment, DeploymentStatus, Target, TargetStatus
from apps.tenancy.models import Environment

S, T = DeploymentStatus, TargetStatus

HOLDS = Q(status=T.ACTIVATED) | Q(status=T.UNREACHABLE, deployment__status=S.ACTIVE)
"""A target that its deployment holds: confirmed, or silent in a deployment that became active without it."""


def still_held(deployment_ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Those of `deployment_ids` that hold at least one target which nobody newer took over."""
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
    """Bring `superseded_by` of those before `deployment` in line with what it took over or gave back."""
    targets = Target.objects.filter(deployment=deployment)
    earlier = Deployment.objects.filter(
        environment=deployment.environment,
        status__in=(S.ACTIVE, S.FAILED),
        rolling_back_at__isnull=True,
        sequence__lt=deployment.sequence,
    )
    if deployment.rolling_back_at is None:
        agents = list(targets.filter(HOLDS).values_list("agent_id", flat=True))
        shared = Target.objects.filter(HOLDS, deployment=OuterRef("pk"), agent_id__in=agents)
        met = list(earlier.filter(Exists(shared), superseded_by__isnull=True).values_list("pk", flat=True))
        taken = set(met) - still_held(met)
        Deployment.objects.filter(pk__in=taken, superseded_by__isnull=True).update(superseded_by=deployment.pk)
        return
    previous = targets.filter(previous_deployment_id__isnull=False).values("previous_deployment_id")
    given_back = list(
        earlier.filter(Q(superseded_by=deployment.pk) | Q(pk__in=previous), superseded_by__isnull=False).values_list(
            "pk", flat=True
        )
    )
    Deployment.objects.filter(pk__in=still_held(given_back)).update(superseded_by=None)


def refresh_left(environment: Environment, deployment_ids: Iterable[uuid.UUID]) -> None:
    """Bring `superseded_by` of `deployment_ids` in line after one of their agents is gone: who holds nothing any more that
    nobody took over is superseded by the newest that took something over. Where nobody did, it stays as it is."""
    left = Deployment.objects.filter(
        pk__in=list(deployment_ids),
        status__in=(S.ACTIVE, S.FAILED),
        rolling_back_at__isnull=True,
        superseded_by__isnull=True,
    )
    candidates: list[uuid.UUID] = list(left.values_list("pk", flat=True))
    for deployment_id in sorted(set(candidates) - still_held(candidates)):
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
    """Set the environment's current deployment: the active one of the highest sequence that nobody superseded."""
    current = (
        Deployment.objects.filter(environment=environment, status=S.ACTIVE, superseded_by__isnull=True)
        .order_by("-sequence")
        .values_list("pk", flat=True)
        .first()
    )
    if current != environment.current_deployment_id:
        Environment.objects.filter(pk=environment.pk).update(current_deployment_id=current)
        environment.current_deployment_id = current
