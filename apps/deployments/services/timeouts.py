"""Targets that stay silent."""

from __future__ import annotations

import datetime as dt
import uuid

from django.db import transaction
from django.db.models import F, Q

from apps.core import clock
from apps.core.errors import NotFound
from apps.deployments.models import Deployment, DeploymentStatus, Target, TargetStatus
from apps.deployments.services.aftermath import after_moves
from apps.deployments.services.judging import judge
from apps.deployments.services.moves import locked_deployment
from apps.runtime.faults import fault_point
from apps.tenancy.selectors import lock_environment

S, T = DeploymentStatus, TargetStatus

WAITED_FOR = Q(settled_at__isnull=True, phase_started_at__isnull=False) & (
    Q(deployment__status=S.DEPLOYING)
    | Q(deployment__status=S.ROLLING_BACK, rollback_at=F("deployment__rolling_back_at"))
)


def sweep_timeouts(now: dt.datetime) -> int:
    """Call those `unreachable` that have not settled `timeout_seconds` after their phase (or rollback) began.

    One transaction per deployment. Answers how many targets.
    """
    rows = Target.objects.filter(WAITED_FOR).values_list(
        "deployment_id", "deployment__environment_id", "deployment__timeout_seconds", "phase_started_at"
    )
    overdue: dict[uuid.UUID, uuid.UUID] = {
        deployment_id: environment_id
        for deployment_id, environment_id, seconds, started in rows
        if started is not None and started + dt.timedelta(seconds=seconds) <= now
    }
    return sum(_time_out(environment_id, pk, now) for pk, environment_id in sorted(overdue.items()))


def _time_out(environment_id: uuid.UUID, deployment_id: uuid.UUID, now: dt.datetime) -> int:
    with transaction.atomic():
        try:
            environment = lock_environment(environment_id)
            deployment: Deployment = locked_deployment(environment, deployment_id)
        except NotFound:
            return 0
        since = now - dt.timedelta(seconds=deployment.timeout_seconds)
        silent = list(
            Target.objects.filter(WAITED_FOR, deployment=deployment, phase_started_at__lte=since).values_list(
                "pk", flat=True
            )
        )
        if not silent:
            return 0
        Target.objects.filter(pk__in=silent, settled_at__isnull=True).update(
            status=T.UNREACHABLE, settled_at=now, updated_at=clock.now()
        )
        judge(deployment)
        after_moves(deployment)
        fault_point("deployments.timeout.before_commit")
    fault_point("deployments.timeout.after_commit")
    return len(silent)
