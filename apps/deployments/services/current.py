"""Who took over from whom, and which deployment is the environment's current one."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from django.db.models import Exists, OuterRef, Q

from apps.deployments.models import Deployment, DeploymentStatus, Target, TargetStatus
from apps.tenancy.models import Environment

S, T = DeploymentStatus, TargetStatus

TAKES_OVER = Q(deployment__rolling_back_at__isnull=True) & (
    Q(status=T.ACTIVATED) | Q(status=T.UNREACHABLE, deployment__status=S.ACTIVE)
)
"""A target that takes its agent over from older deployments: confirmed, or stayed away from one that became active."""


def still_held(deployment_ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Those of `deployment_ids` that hold at least one target nobody newer took over.

    A deployment holds the targets that it activated and those that stayed away, save where the agent is gone.
    """
    newer = Target.objects.filter(
        TAKES_OVER, agent_id=OuterRef("agent_id"), sequence__gt=OuterRef("sequence")
    )
    held = Target.objects.filter(
        Q(status__in=(T.ACTIVATED, T.UNREACHABLE)) | Q(status__in=(T.ASSIGNED, T.FETCHED, T.VERIFIED)),
        ~Exists(newer),
        deployment_id__in=list(deployment_ids),
        agent_gone_at__isnull=True,
    )
    return set(held.values_list("deployment_id", flat=True))


def refresh_superseded(deployment: Deployment) -> None:
    """Bring `superseded_by` of those before `deployment` in line with what it took over or gave back."""
    environment = deployment.environment
    mine = list(Target.objects.filter(deployment=deployment).values_list("agent_id", flat=True))
    earlier = Deployment.objects.filter(
        environment=environment,
        status__in=(S.ACTIVE, S.FAILED),
        rolling_back_at__isnull=True,
        sequence__lt=deployment.sequence,
    )
    if deployment.rolling_back_at is None:
        taken = list(
            earlier.filter(
                Exists(Target.objects.filter(deployment=OuterRef("pk"), agent_id__in=mine, status=T.ACTIVATED))
                | Q(status=S.ACTIVE),
                superseded_by__isnull=True,
            )
            .filter(Exists(Target.objects.filter(deployment=OuterRef("pk"), agent_id__in=mine)))
            .values_list("pk", flat=True)
        )
        over = set(taken) - still_held(taken)
        Deployment.objects.filter(pk__in=over, superseded_by__isnull=True).update(superseded_by=deployment.pk)
        return
    previous = Target.objects.filter(deployment=deployment, previous_deployment_id__isnull=False)
    back = set(
        earlier.filter(
            Q(superseded_by=deployment.pk) | Q(pk__in=previous.values("previous_deployment_id")),
            superseded_by__isnull=False,
        ).values_list("pk", flat=True)
    )
    Deployment.objects.filter(pk__in=still_held(back)).update(superseded_by=None)


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
