"""Deciding from its targets how a deployment goes on."""

from __future__ import annotations

from collections import Counter

from apps.agents import services as agents
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR, ActorRef
from apps.deployments.models import Deployment, DeploymentStatus, Target, TargetStatus, in_words
from apps.deployments.rollout import Step
from apps.deployments.rules import Undoing, Undone, undoing
from apps.deployments.services.moves import move, said
from apps.deployments.services.phases import Progress, carry_on, record
from apps.runtime.faults import fault_point

S, T = DeploymentStatus, TargetStatus

NAMED = 3
FAILURE_LENGTH = 200


def judge(deployment: Deployment) -> None:
    """Make the move that its targets call for, if any, in the caller's transaction (its environment locked)."""
    if deployment.status == S.DEPLOYING.value:
        conclude(deployment, carry_on(deployment, now=clock.now()))
    elif deployment.status == S.ROLLING_BACK.value:
        judge_rollback(deployment)


def conclude(deployment: Deployment, progress: Progress) -> None:
    """Put on record how far a rollout got, and end it if that is where it got: `active` once every phase passed, `failed`
    the moment too many targets failed or are unreachable.
    """
    record(deployment, progress)
    summary = in_words(progress.counts)
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
    """Which agents failed and why, the first few."""
    failed = Target.objects.filter(deployment=deployment, status=T.FAILED).order_by("settled_at", "pk")
    rows = failed.values_list("agent_name", "report")[:NAMED]
    return [f"{name}: {report['failure']}"[:FAILURE_LENGTH] for name, report in rows if report.get("failure")]


def fail_rollout(deployment: Deployment, *, code: str, detail: str, actor: ActorRef = SYSTEM_ACTOR) -> None:
    """Move a deployment that is `deploying` to `failed`, in the caller's transaction. No further phase begins.

    With `auto_rollback` it goes on to `rolling_back` in the same transaction, unless that would lead to a bundle under a
    revoked signing key: then its reason says so. Targets that were never assigned stay as they are: nobody told them anything.
    """
    from apps.deployments.services.rollback import begin_rollback, revoked_way_back

    now = clock.now()
    told = Target.objects.filter(deployment=deployment, sequence__isnull=False)
    # nobody is asked for it any more, so nobody is waited for
    told.filter(settled_at__isnull=True).update(settled_at=now, updated_at=now)
    agents.announce(told.values_list("agent_id", flat=True))
    goes_back = deployment.auto_rollback and told.filter(agent_gone_at__isnull=True).exists()
    if goes_back and revoked_way_back(deployment) is not None:
        goes_back = False
        detail = f"{detail}; not taken back by itself: what ran before is under a signing key that was revoked"
    move(
        deployment,
        "fail",
        actor=actor,
        trigger=code,
        reason=detail,
        status_reason=said(code, detail),
        settled_at=now,
    )
    fault_point("deployments.rollout.failed")
    if goes_back:
        begin_rollback(deployment, actor=SYSTEM_ACTOR, trigger="auto_rollback", reason=detail)


def judge_rollback(deployment: Deployment) -> None:
    """`rolled_back` once every reachable target confirmed, `failed` as soon as one could not go back (`rules.undoing`)."""
    rows = list(
        Target.objects.filter(deployment=deployment, rollback_at=deployment.rolling_back_at).values_list(
            "agent_name", "status", "settled_at", "agent_gone_at"
        )
    )
    asked = {name: Undone(status, settled is not None, gone is not None) for name, status, settled, gone in rows}
    step = undoing(asked.values())
    if step is Undoing.FAIL:
        failed = [name for name, target in asked.items() if undoing([target]) is Undoing.FAIL]
        reason = f"could not go back on {', '.join(failed[:5])}"
        move(
            deployment,
            "fail",
            actor=SYSTEM_ACTOR,
            trigger="rollback_failed",
            reason=reason,
            status_reason=said("rollback_failed", reason),
            settled_at=clock.now(),
        )
    elif step is Undoing.CONFIRM:
        move(
            deployment,
            "confirm_rollback",
            actor=SYSTEM_ACTOR,
            trigger="rollback_confirmed",
            reason=in_words(Counter(target.status for target in asked.values())),
            settled_at=clock.now(),
        )
        fault_point("deployments.rollback.confirmed")
