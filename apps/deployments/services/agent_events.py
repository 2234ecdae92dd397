"""Effects on targets of an agent's removal and of a bundle's download."""

from __future__ import annotations

import uuid

from apps.agents.models import Agent
from apps.core import clock
from apps.core.actors import ActorRef
from apps.deployments.models import Deployment, Target, TargetStatus
from apps.deployments.selectors import waiting_for_agent
from apps.deployments.services.progress import apply_target_progress
from apps.deployments.services.reconcile import reconcile_after_transition
from apps.deployments.services.supersession import refresh_left
from apps.deployments.services.transitions import locked_deployment

REMOVED = "agent_removed"


def settle_targets_of_agent(*, actor: ActorRef, agent: Agent) -> None:
    """Fail the unsettled targets of a removed `agent` and apply the progress of their deployments.

    Runs in the caller's transaction, which holds the environment's lock. Targets keep the agent's id and name. Supersession
    is refreshed too, because the agent may have been the last that an older deployment still ran on.
    """
    now = clock.now()
    mine = Target.objects.filter(agent_id=agent.pk, deployment__environment=agent.environment)
    waiting = mine.filter(waiting_for_agent())
    concerned = list(waiting.order_by("deployment_id").values_list("deployment_id", flat=True))
    report = {"status": "failed", "reason": REMOVED, "failure": REMOVED, "by": str(actor)}
    waiting.update(status=TargetStatus.FAILED, settled_at=now, updated_at=now, report=report)
    mine.filter(agent_gone_at__isnull=True).update(agent_gone_at=now)
    for deployment_id in concerned:
        deployment: Deployment = locked_deployment(agent.environment, deployment_id)
        apply_target_progress(deployment)
        reconcile_after_transition(deployment)
    refresh_left(agent.environment, mine.values_list("deployment_id", flat=True))


def record_bundle_download(*, agent_id: uuid.UUID, deployment_id: uuid.UUID) -> bool:
    """Record that the bundle is delivered to this agent: from now on a rollback waits for its report.

    Returns False, and records nothing, when a rollback has settled this target as never delivered.
    """
    mine = Target.objects.filter(agent_id=agent_id, deployment_id=deployment_id)
    free = mine.filter(handed_out_at__isnull=True, rollback_at__isnull=True)
    return bool(free.update(handed_out_at=clock.now())) or mine.filter(handed_out_at__isnull=False).exists()
