"""Bakes: unhealthy heartbeats, and the end of a bake."""

from __future__ import annotations

import datetime as dt
import uuid

from django.db import transaction

from apps.agents import selectors as agent_reads
from apps.agents.models import Agent
from apps.agents.registry import Running
from apps.core import clock
from apps.core.isolation import for_each
from apps.deployments.models import Deployment, DeploymentStatus, Target, TargetStatus
from apps.deployments.services.phases import UNHEALTHY, fail_active_target
from apps.deployments.services.progress import apply_target_progress
from apps.deployments.services.reconcile import reconcile_after_transition
from apps.deployments.services.transitions import lock_deployment
from apps.runtime.faults import fault_point

S, T = DeploymentStatus, TargetStatus

SWEEP_SECONDS = 60.0


def record_unhealthy_heartbeat(*, agent: Agent, running: Running | None) -> bool:
    """Fail the target of an unhealthy agent during the bake of the deployment that it activated.

    Has no effect outside of a bake, or when the agent reports that it runs another bundle. One transaction. Returns True
    when a target failed.
    """
    mine = Target.objects.filter(
        agent_id=agent.pk,
        sequence__isnull=False,
        status=T.ACTIVATED,
        deployment__status=S.DEPLOYING,
        deployment__bake_started_at__isnull=False,
    )
    # most heartbeats have no effect and take no lock
    found = mine.values_list("deployment_id", flat=True).first()
    if found is None or (running is not None and running.deployment_id != found):
        return False
    with transaction.atomic():
        deployment = lock_deployment(agent.environment_id, found)
        target = mine.filter(deployment=deployment).first() if deployment is not None else None
        if deployment is None or target is None:
            return False
        reason = agent_reads.unhealthy_agents([agent.pk], deployment.pk).get(agent.pk, "")
        fail_active_target(target, UNHEALTHY, reason, clock.now())
        apply_target_progress(deployment)
        reconcile_after_transition(deployment)
        fault_point("deployments.unhealthy.before_commit")
    fault_point("deployments.unhealthy.after_commit")
    return True


def end_due_bakes(now: dt.datetime) -> int:
    """Advance every deployment whose bake is over. One transaction each; a failure does not block the others.

    Returns the number of deployments processed.
    """
    over = Deployment.objects.filter(bake_ends_at__lte=now, status=S.DEPLOYING).order_by("bake_ends_at")
    rows: list[tuple[uuid.UUID, uuid.UUID]] = list(over.values_list("environment_id", "pk"))
    return for_each("deployment_bakes", rows, lambda row: _end_bake(*row), seconds=SWEEP_SECONDS)


def _end_bake(environment_id: uuid.UUID, deployment_id: uuid.UUID) -> bool:
    with transaction.atomic():
        deployment = lock_deployment(environment_id, deployment_id)
        if deployment is None or deployment.status != S.DEPLOYING.value:
            return False
        if deployment.bake_ends_at is None or deployment.bake_ends_at > clock.now():
            return False
        apply_target_progress(deployment)
        reconcile_after_transition(deployment)
        fault_point("deployments.bake_end.before_commit")
    fault_point("deployments.bake_end.after_commit")
    return True
