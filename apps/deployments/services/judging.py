"""Deciding from its targets how a deployment goes on."""

from __future__ import annotations

from collections import Counter

from apps.agents import services as agents
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR
from apps.deployments.models import Deployment, DeploymentStatus, Target, TargetStatus
from apps.deployments.services.moves import move
from apps.runtime.faults import fault_point

S, T = DeploymentStatus, TargetStatus


def judge(deployment: Deployment) -> None:
    """Make the move that its targets call for, if any, in the caller's transaction (its environment locked)."""
    if deployment.status == S.DEPLOYING.value:
        judge_rollout(deployment)
    elif deployment.status == S.ROLLING_BACK.value:
        judge_rollback(deployment)


def judge_rollout(deployment: Deployment) -> None:
    """`active` once every target settled with few enough failed or unreachable; `failed` the moment there are more.

    With `auto_rollback` a failure goes on to `rolling_back` in the same transaction.
    """
    rows = list(Target.objects.filter(deployment=deployment).values_list("status", "settled_at"))
    counts = Counter(status for status, _ in rows)
    bad = counts[T.FAILED.value] + counts[T.UNREACHABLE.value]
    if bad > deployment.max_failures:
        _fail_rollout(deployment, counts)
    elif all(settled is not None for _, settled in rows):
        move(
            deployment,
            "activate",
            actor=SYSTEM_ACTOR,
            trigger="targets_settled",
            reason=_summary(counts),
            status_reason="",
            settled_at=clock.now(),
        )
        fault_point("deployments.rollout.activated")


def _summary(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[status.value]} {status.value}" for status in T if counts[status.value])


def _fail_rollout(deployment: Deployment, counts: Counter[str]) -> None:
    from apps.deployments.services.rollback import begin_rollback

    summary, now = _summary(counts), clock.now()
    # nobody is asked for it any more, so nobody is waited for
    Target.objects.filter(deployment=deployment, settled_at__isnull=True).update(settled_at=now, updated_at=now)
    agents.announce(Target.objects.filter(deployment=deployment).values_list("agent_id", flat=True))
    move(
        deployment,
        "fail",
        actor=SYSTEM_ACTOR,
        trigger="failures_exceeded",
        reason=summary,
        status_reason=f"failures_exceeded: {summary}",
        settled_at=now,
    )
    fault_point("deployments.rollout.failed")
    reachable = Target.objects.filter(deployment=deployment, sequence__isnull=False, agent_gone_at__isnull=True)
    if deployment.auto_rollback and reachable.exists():
        begin_rollback(deployment, actor=SYSTEM_ACTOR, trigger="auto_rollback", reason=summary)


def judge_rollback(deployment: Deployment) -> None:
    """`rolled_back` once every reachable target confirmed, `failed` as soon as one could not go back.

    Targets whose agent is gone, or that stayed silent, hold nothing up.
    """
    rows = list(
        Target.objects.filter(deployment=deployment, rollback_at=deployment.rolling_back_at).values_list(
            "status", "settled_at", "agent_gone_at", "agent_name"
        )
    )
    failed = [
        name
        for status, settled, gone, name in rows
        if status == T.FAILED.value and settled is not None and gone is None
    ]
    if failed:
        reason = f"could not go back on {', '.join(failed[:5])}"
        move(
            deployment,
            "fail",
            actor=SYSTEM_ACTOR,
            trigger="rollback_failed",
            reason=reason,
            status_reason=f"rollback_failed: {reason}",
            settled_at=clock.now(),
        )
    elif all(settled is not None or gone is not None for _, settled, gone, _ in rows):
        counts = Counter(status for status, *_ in rows)
        move(
            deployment,
            "confirm_rollback",
            actor=SYSTEM_ACTOR,
            trigger="rollback_confirmed",
            reason=_summary(counts),
            settled_at=clock.now(),
        )
        fault_point("deployments.rollback.confirmed")
