"""What becomes of targets when their agent goes, and when a bundle is handed to one."""

from __future__ import annotations

import uuid

from apps.agents.models import Agent
from apps.core import clock
from apps.core.actors import ActorRef
from apps.deployments.models import Deployment, Target, TargetStatus
from apps.deployments.selectors import waiting_for_agent
from apps.deployments.services.aftermath import after_moves
from apps.deployments.services.current import refresh_left
from apps.deployments.services.judging import judge
from apps.deployments.services.moves import locked_deployment

REMOVED = "agent_removed"


def agent_removed(*, actor: ActorRef, agent: Agent) -> None:
    """Fail what still waits for `agent` (`agent_removed`) and judge those deployments anew.

    In the caller's transaction, the environment locked by it. Targets keep the agent's id and name. What it ran may have
    been the last that somebody had not taken over: supersession is looked at again.
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
        judge(deployment)
        after_moves(deployment)
    refresh_left(agent.environment, mine.values_list("deployment_id", flat=True))


def note_handed_out(*, agent_id: uuid.UUID, deployment_id: uuid.UUID) -> None:
    """Remember that the bundle was given to this agent: from now on a rollback waits for what it says."""
    Target.objects.filter(agent_id=agent_id, deployment_id=deployment_id, handed_out_at__isnull=True).update(
        handed_out_at=clock.now()
    )
