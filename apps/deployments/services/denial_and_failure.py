"""Denial and failure of a deployment by its approval or build, not by its agents."""

from __future__ import annotations

from apps.core.actors import ActorRef
from apps.core.errors import Conflict, StateConflict
from apps.core.fsm import allowed_from
from apps.deployments.models import Deployment, DeploymentStatus
from apps.deployments.services.progress import fail_rollout
from apps.deployments.services.rollback import begin_rollback, rollback_to_revoked_key
from apps.deployments.services.transitions import end, move

S = DeploymentStatus

BEFORE_HAND_OUT = (S.PENDING_APPROVAL.value, S.APPROVED.value, S.BUILDING.value)


def deny(deployment: Deployment, *, actor: ActorRef, trigger: str, reason: str) -> None:
    """Move to `denied`, in the caller's transaction. Raises StateConflict."""
    end(deployment, "deny", actor=actor, code=trigger, detail=reason, build_queued_at=None)


def cancel_or_roll_back(deployment: Deployment, *, actor: ActorRef, trigger: str, reason: str) -> None:
    """Move a cancelled or revoked deployment to `denied` before delivery, or to `rolling_back` while deploying.

    When a revoked signing key prevents the rollback, it moves to `failed` and no further agent changes. Raises Conflict
    `deployment_completed` after deploying, StateConflict when it is already denied.
    """
    if deployment.status in BEFORE_HAND_OUT:
        deny(deployment, actor=actor, trigger=trigger, reason=reason)
    elif deployment.status == S.DEPLOYING.value:
        if rollback_to_revoked_key(deployment) is None:
            begin_rollback(deployment, actor=actor, trigger=trigger, reason=reason)
        else:
            stays = "the previous bundle's signing key is revoked, so updated agents are not rolled back"
            fail_rollout(deployment, code=trigger, detail=f"{reason}; {stays}" if reason else stays, actor=actor)
    elif deployment.status == S.DENIED.value:
        raise StateConflict(deployment.status, S.DENIED.value, allowed_from(deployment))
    else:
        raise Conflict(
            f"The deployment is already {deployment.status}. Use a rollback instead.",
            code="deployment_completed",
            extra={"from": deployment.status, "allowed": allowed_from(deployment)},
        )


def fail_build(deployment: Deployment, *, actor: ActorRef, code: str, detail: str = "") -> None:
    """Move to `failed` before delivery (through `building` if the build has not started).

    Raises StateConflict after that.
    """
    if deployment.status == S.APPROVED.value:
        move(deployment, "start_build", actor=actor, trigger="build_started", build_queued_at=None)
    if deployment.status != S.BUILDING.value:
        raise StateConflict(deployment.status, S.FAILED.value, allowed_from(deployment))
    end(deployment, "fail", actor=actor, code=code, detail=detail)
