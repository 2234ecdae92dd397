"""Progress of a deployment, derived from its targets."""

from __future__ import annotations

from apps.agents import services as agents
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR, ActorRef
from apps.deployments.models import Deployment, DeploymentStatus, Target, TargetStatus, describe_counts
from apps.deployments.rollout import Step
from apps.deployments.services.phases import Progress, advance_phases, record
from apps.deployments.services.rollback import apply_rollback_progress, begin_rollback, rollback_to_revoked_key
from apps.deployments.services.transitions import end, move
from apps.runtime.faults import fault_point

S, T = DeploymentStatus, TargetStatus

NAMED = 3
FAILURE_LENGTH = 200


def apply_target_progress(deployment: Deployment) -> None:
    """Make the transition that the targets require, if any, in the caller's transaction (environment locked)."""
    if deployment.status == S.DEPLOYING.value:
        apply_progress(deployment, advance_phases(deployment, now=clock.now()))
    elif deployment.status == S.ROLLING_BACK.value:
        apply_rollback_progress(deployment)


def apply_progress(deployment: Deployment, progress: Progress) -> None:
    """Record the progress of a rollout, and end it: `active` once every phase passed, `failed` on too many failures."""
    record(deployment, progress)
    summary = describe_counts(progress.counts)
    if progress.step is Step.FAIL:
        fail_rollout(deployment, code=progress.why, detail="; ".join([summary, *_failures(deployment)]))
    elif progress.step is Step.ACTIVATE:
        move(
            deployment,
            "activate",
            actor=SYSTEM_ACTOR,
            trigger="targets_settled",
            reason=summary,
            status_reason="",
            settled_at=clock.now(),
        )
        fault_point("deployments.rollout.activated")


def _failures(deployment: Deployment) -> list[str]:
    """The first few failed agents, with their reasons."""
    failed = Target.objects.filter(deployment=deployment, status=T.FAILED).order_by("settled_at", "pk")
    rows = failed.values_list("agent_name", "report")[:NAMED]
    return [f"{name}: {report['failure']}"[:FAILURE_LENGTH] for name, report in rows if report.get("failure")]


def fail_rollout(deployment: Deployment, *, code: str, detail: str, actor: ActorRef = SYSTEM_ACTOR) -> None:
    """Move a deployment that is `deploying` to `failed`, in the caller's transaction. No further phase begins.

    With `auto_rollback` it moves on to `rolling_back` in the same transaction, unless that would lead to a bundle under a
    revoked signing key; its reason states that. Targets that were never assigned are not changed.
    """
    now = clock.now()
    assigned = Target.objects.filter(deployment=deployment, sequence__isnull=False)
    # the bundle is no longer desired, so no report is expected
    assigned.filter(settled_at__isnull=True).update(settled_at=now, updated_at=now)
    agents.announce(assigned.values_list("agent_id", flat=True))
    goes_back = deployment.auto_rollback and assigned.filter(agent_gone_at__isnull=True).exists()
    if goes_back and rollback_to_revoked_key(deployment) is not None:
        goes_back = False
        detail = f"{detail}; not rolled back automatically: the previous bundle's signing key is revoked"
    end(deployment, "fail", actor=actor, code=code, detail=detail)
    fault_point("deployments.rollout.failed")
    if goes_back:
        begin_rollback(deployment, actor=SYSTEM_ACTOR, trigger="auto_rollback", reason=detail)
