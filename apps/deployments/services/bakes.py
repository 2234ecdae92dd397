"""What decides in a bake: unhealthy heartbeats, and its end."""

from __future__ import annotations

import datetime as dt
import uuid

from django.db import transaction

from apps.agents import selectors as agent_reads
from apps.agents.models import Agent
from apps.agents.registry import Running
from apps.core import clock
from apps.core.errors import NotFound
from apps.deployments.models import Deployment, DeploymentStatus, Target, TargetStatus
from apps.deployments.services.aftermath import after_moves
from apps.deployments.services.judging import judge
from apps.deployments.services.moves import locked_deployment
from apps.deployments.services.phases import UNHEALTHY, fail_activated
from apps.runtime.faults import fault_point
from apps.tenancy.selectors import lock_environment

S, T = DeploymentStatus, TargetStatus


def take_unhealthy_heartbeat(*, agent: Agent, running: Running | None) -> bool:
    """An agent says that it is not well: in a bake of a deployment that it activated, its target has failed.

    Anywhere else nothing follows, nor when it speaks of something else that runs there. One transaction; True when a
    target failed.
    """
    mine = Target.objects.filter(
        agent_id=agent.pk,
        sequence__isnull=False,
        status=T.ACTIVATED,
        deployment__status=S.DEPLOYING,
        deployment__bake_started_at__isnull=False,
    )
    # no lock is taken for the many heartbeats that decide nothing
    found = mine.values_list("deployment_id", flat=True).first()
    if found is None or (running is not None and running.deployment_id != found):
        return False
    with transaction.atomic():
        try:
            deployment = locked_deployment(lock_environment(agent.environment_id), found)
        except NotFound:
            return False
        target = mine.filter(deployment=deployment).first()
        if target is None:
            return False
        said = agent_reads.unwell([agent.pk], deployment.pk).get(agent.pk, "")
        fail_activated(target, UNHEALTHY, said, clock.now())
        judge(deployment)
        after_moves(deployment)
        fault_point("deployments.unhealthy.before_commit")
    fault_point("deployments.unhealthy.after_commit")
    return True


def sweep_bakes(now: dt.datetime) -> int:
    """Take every deployment whose bake is over on to what comes next. One transaction each; how many were looked at."""
    over = Deployment.objects.filter(bake_ends_at__lte=now, status=S.DEPLOYING).order_by("bake_ends_at")
    rows: list[tuple[uuid.UUID, uuid.UUID]] = list(over.values_list("environment_id", "pk"))
    return sum(_end_bake(environment_id, pk) for environment_id, pk in rows)


def _end_bake(environment_id: uuid.UUID, deployment_id: uuid.UUID) -> bool:
    with transaction.atomic():
        try:
            deployment = locked_deployment(lock_environment(environment_id), deployment_id)
        except NotFound:
            return False
        ends = deployment.bake_ends_at
        if deployment.status != S.DEPLOYING.value or ends is None or ends > clock.now():
            return False
        judge(deployment)
        after_moves(deployment)
        fault_point("deployments.bake_end.before_commit")
    fault_point("deployments.bake_end.after_commit")
    return True
