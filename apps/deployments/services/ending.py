"""Ends that come from the approval or the build, not from the agents."""

from __future__ import annotations

from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.errors import Conflict, StateConflict
from apps.core.fsm import allowed_from
from apps.deployments.models import Deployment, DeploymentStatus
from apps.deployments.services.judging import fail_rollout
from apps.deployments.services.moves import move, said
from apps.deployments.services.rollback import begin_rollback, revoked_way_back

S = DeploymentStatus

BEFORE_HAND_OUT = (S.PENDING_APPROVAL.value, S.APPROVED.value, S.BUILDING.value)


def deny(deployment: Deployment, *, actor: ActorRef, trigger: str, reason: str) -> None:
    """Move to `denied`, in the caller's transaction. Raises StateConflict."""
    move(
        deployment,
        "deny",
        actor=actor,
        trigger=trigger,
        reason=reason,
        status_reason=said(trigger, reason),
        build_queued_at=None,
        settled_at=clock.now(),
    )


def take_back(deployment: Deployment, *, actor: ActorRef, trigger: str, reason: str) -> None:
    """Cancelled or revoked: `denied` before it was handed out, `rolling_back` while deploying; `failed` when there is no
    way back because of a revoked signing key: no further agent is touched.

    Raises Conflict `deployment_completed` later, StateConflict when it was denied already.
    """
    if deployment.status in BEFORE_HAND_OUT:
        deny(deployment, actor=actor, trigger=trigger, reason=reason)
    elif deployment.status == S.DEPLOYING.value:
        if revoked_way_back(deployment) is None:
            begin_rollback(deployment, actor=actor, trigger=trigger, reason=reason)
        else:
            stays = "what went before is under a revoked signing key, so agents that changed stay"
            fail_rollout(deployment, code=trigger, detail=f"{reason}; {stays}" if reason else stays, actor=actor)
    elif deployment.status == S.DENIED.value:
        raise StateConflict(deployment.status, S.DENIED.value, allowed_from(deployment))
    else:
        raise Conflict(
            f"It is {deployment.status} already. What runs is taken back by a rollback.",
            code="deployment_completed",
            extra={"from": deployment.status, "allowed": allowed_from(deployment)},
        )


def fail_build(deployment: Deployment, *, actor: ActorRef, code: str, detail: str = "") -> None:
    """Move to `failed` before anything was handed out (through `building` when it was not there yet).

    Raises StateConflict when it is past that.
    """
    if deployment.status == S.APPROVED.value:
        move(deployment, "start_build", actor=actor, trigger="build_started", build_queued_at=None)
    if deployment.status != S.BUILDING.value:
        raise StateConflict(deployment.status, S.FAILED.value, allowed_from(deployment))
    move(
        deployment,
        "fail",
        actor=actor,
        trigger=code,
        reason=detail,
        status_reason=said(code, detail),
        settled_at=clock.now(),
    )
