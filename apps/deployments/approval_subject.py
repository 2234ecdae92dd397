"""Effects of an approval decision on its deployment. Called in the decision's transaction."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from apps.approvals.models import Approval
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR, ActorRef
from apps.core.errors import NotFound
from apps.core.ids import parse_id
from apps.deployments.models import Deployment, DeploymentStatus
from apps.deployments.selectors import BaseQuery, bases_of
from apps.deployments.services.denial_and_failure import cancel_or_roll_back, deny, fail_build
from apps.deployments.services.reconcile import reconcile_after_transition
from apps.deployments.services.transitions import locked_deployment, move
from apps.tenancy.selectors import lock_environment

S = DeploymentStatus


def _deployment_of(approval: Approval) -> Deployment:
    if approval.deployment_id is None:
        raise NotFound()
    return locked_deployment(lock_environment(approval.environment_id), approval.deployment_id)


class DeploymentSubject:
    """The subject of approvals with the action `deploy` (`apps.approvals.registry.ApprovalSubject`)."""

    def present_bases(self, approvals: Sequence[Approval]) -> dict[uuid.UUID, dict[str, str | None]]:
        """{approval: {agent id: its base deployment now}}, as `selectors.base_of`. One query for all approvals."""
        wanted = {
            approval.pk: BaseQuery(
                environment_id=approval.environment_id,
                agent_ids=[agent_id for text in approval.target_agent_ids if (agent_id := parse_id(text)) is not None],
                exclude=approval.deployment_id,
            )
            for approval in approvals
        }
        return bases_of(wanted)

    def on_approved(self, *, approval: Approval, actor: ActorRef) -> None:
        """Move to `approved`, and queue the build if all targets are free."""
        deployment = _deployment_of(approval)
        move(
            deployment,
            "approve",
            actor=actor,
            trigger="approval_granted" if approval.required_approvals else "policy",
            status_reason="",
            approved_at=clock.now(),
        )
        reconcile_after_transition(deployment)

    def on_denied(self, *, approval: Approval, actor: ActorRef, trigger: str, reason: str) -> None:
        """Move to `denied`: a reviewer denied it, the approval expired, or the requester withdrew it."""
        deployment = _deployment_of(approval)
        deny(deployment, actor=actor, trigger=trigger, reason=reason)
        reconcile_after_transition(deployment)

    def on_revoked(self, *, approval: Approval, actor: ActorRef, reason: str) -> None:
        """Move to `denied` before delivery, or to `rolling_back` while deploying. Later, raises Conflict `deployment_completed`."""
        deployment = _deployment_of(approval)
        cancel_or_roll_back(deployment, actor=actor, trigger="revoked", reason=reason)
        reconcile_after_transition(deployment)

    def on_credential_expired(self, *, approval: Approval) -> None:
        """Move to `failed` (`credential_expired`) if it is not built yet."""
        deployment = _deployment_of(approval)
        if deployment.status in (S.APPROVED.value, S.BUILDING.value):
            fail_build(deployment, actor=SYSTEM_ACTOR, code="credential_expired")
            reconcile_after_transition(deployment)
