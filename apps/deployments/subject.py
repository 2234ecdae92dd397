"""What a decision on an approval does to its deployment. Called in the decision's own transaction."""

from __future__ import annotations

from apps.approvals.models import Approval
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR, ActorRef
from apps.core.errors import NotFound
from apps.core.ids import parse_id
from apps.deployments.models import Deployment, DeploymentStatus
from apps.deployments.selectors import base_of
from apps.deployments.services.aftermath import after_moves
from apps.deployments.services.ending import deny, fail_build, take_back
from apps.deployments.services.moves import locked_deployment, move
from apps.tenancy.selectors import lock_environment

S = DeploymentStatus


def _deployment_of(approval: Approval) -> Deployment:
    if approval.deployment_id is None:
        raise NotFound()
    return locked_deployment(lock_environment(approval.environment_id), approval.deployment_id)


class DeploymentSubject:
    """The subject of approvals with the action `deploy` (`apps.approvals.registry.ApprovalSubject`)."""

    def present_base(self, approval: Approval) -> dict[str, str | None]:
        """{agent id: the deployment it stands on now}: see `selectors.base_of`."""
        agent_ids = [agent_id for text in approval.target_agent_ids if (agent_id := parse_id(text)) is not None]
        return base_of(approval.environment_id, agent_ids, aside=approval.deployment_id)

    def on_approved(self, *, approval: Approval, actor: ActorRef) -> None:
        """`approved`, and its build queued if all of its targets are free."""
        deployment = _deployment_of(approval)
        move(
            deployment,
            "approve",
            actor=actor,
            trigger="approval_granted" if approval.required_approvals else "policy",
            status_reason="",
            approved_at=clock.now(),
        )
        after_moves(deployment)

    def on_denied(self, *, approval: Approval, actor: ActorRef, trigger: str, reason: str) -> None:
        """`denied`: a reviewer said no, nobody decided in time, or the requester withdrew."""
        deployment = _deployment_of(approval)
        deny(deployment, actor=actor, trigger=trigger, reason=reason)
        after_moves(deployment)

    def on_revoked(self, *, approval: Approval, actor: ActorRef, reason: str) -> None:
        """`denied` before it was handed out, `rolling_back` while deploying; Conflict `deployment_completed` later."""
        deployment = _deployment_of(approval)
        take_back(deployment, actor=actor, trigger="revoked", reason=reason)
        after_moves(deployment)

    def on_credential_expired(self, *, approval: Approval) -> None:
        """`failed` (`credential_expired`) when it was not built yet; nothing otherwise."""
        deployment = _deployment_of(approval)
        if deployment.status in (S.APPROVED.value, S.BUILDING.value):
            fail_build(deployment, actor=SYSTEM_ACTOR, code="credential_expired")
            after_moves(deployment)
