"""Rollback of each target to what it had last confirmed, without a new approval."""

from __future__ import annotations

import uuid
from collections import Counter

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from apps.access.principals import Principal
from apps.agents import services as agents
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR, ActorRef
from apps.core.db import in_chunks, lock_rows, update_each
from apps.core.errors import Conflict, StateConflict
from apps.core.fsm import allowed_from
from apps.deployments.desired import desired_of, without
from apps.deployments.models import Deployment, DeploymentStatus, Target, TargetStatus, describe_counts
from apps.deployments.rules import RollbackOutcome, RollbackTarget, rollback_outcome
from apps.deployments.selectors import assignment_history
from apps.deployments.services.build_queue import busy_agents
from apps.deployments.services.reconcile import reconcile_after_transition
from apps.deployments.services.transitions import end, format_status_reason, locked_deployment, move
from apps.runtime.faults import fault_point
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environment


def apply_rollback_progress(deployment: Deployment) -> None:
    """Move to `rolled_back` or `failed` if `rules.rollback_outcome` is decided."""
    rows = list(
        Target.objects.filter(deployment=deployment, rollback_at=deployment.rolling_back_at).values_list(
            "agent_name", "status", "settled_at", "agent_gone_at"
        )
    )
    asked = {
        name: RollbackTarget(status, settled is not None, deleted is not None)
        for name, status, settled, deleted in rows
    }
    step = rollback_outcome(asked.values())
    if step is RollbackOutcome.FAIL:
        failed = [name for name, target in asked.items() if rollback_outcome([target]) is RollbackOutcome.FAIL]
        reason = f"could not roll back on {', '.join(failed[:5])}"
        end(deployment, "fail", actor=SYSTEM_ACTOR, code="rollback_failed", detail=reason)
    elif step is RollbackOutcome.CONFIRM:
        move(
            deployment,
            "confirm_rollback",
            actor=SYSTEM_ACTOR,
            trigger="rollback_confirmed",
            reason=describe_counts(Counter(target.status for target in asked.values())),
            settled_at=clock.now(),
        )
        fault_point("deployments.rollback.confirmed")


S, T = DeploymentStatus, TargetStatus

REVOKED = "signing_key_revoked"
NEVER_FETCHED = (T.ASSIGNED.value, T.UNREACHABLE.value, T.FAILED.value)
"""Statuses of a target to which the bundle was never delivered."""
ROLLS_BACK_FROM = (S.DEPLOYING.value, S.ACTIVE.value, S.FAILED.value)


def targets_where_latest(deployment: Deployment) -> QuerySet[Target]:
    """The assigned targets of enrolled agents on which no newer deployment took over.

    A newer deployment took over unless it failed there, failed before it was activated there, or was rolled back.
    """
    newer = Target.objects.filter(
        ~Q(status=T.FAILED),
        ~Q(Q(deployment__status=S.FAILED) & ~Q(status=T.ACTIVATED)),
        agent_id=OuterRef("agent_id"),
        sequence__gt=OuterRef("sequence"),
        deployment__rolling_back_at__isnull=True,
    )
    return Target.objects.filter(
        ~Exists(newer), deployment=deployment, sequence__isnull=False, agent_gone_at__isnull=True
    )


def _untouched(target: Target) -> bool:
    return target.handed_out_at is None and target.status in NEVER_FETCHED


def _lock_targets(deployment: Deployment) -> None:
    """Lock the targets' rows. Downloads are recorded there without the environment's lock, and wait for this transaction."""
    lock_rows(Target.objects.filter(deployment=deployment).only("pk").order_by("pk"))


def rollback_to_revoked_key(deployment: Deployment) -> uuid.UUID | None:
    """A deployment under a revoked signing key to which a rollback would return an agent; None without one.

    Agents that never downloaded `deployment` need no rollback. The targets' rows are locked first, so that the result still
    holds when the caller acts on it.
    """
    revoked = Deployment.objects.filter(environment=deployment.environment, key_revoked_at__isnull=False)
    if not revoked.exists():
        return None
    _lock_targets(deployment)
    back: set[uuid.UUID] = set()
    for target in targets_where_latest(deployment):
        if not _untouched(target):
            wanted = desired_of(without(assignment_history(target.agent_id), deployment.pk, clock.now()))
            back |= {wanted.deployment_id} if wanted.deployment_id else set()
    found = [row for chunk in in_chunks(back) for row in revoked.filter(pk__in=chunk).values_list("sequence", "pk")]
    return max(found)[1] if found else None


def begin_rollback(deployment: Deployment, *, actor: ActorRef, trigger: str, reason: str) -> None:
    """Move to `rolling_back` and notify the targets, in the caller's transaction (environment locked).

    Only assigned targets change; those that never downloaded the bundle are settled at once. Raises Conflict
    `invalid_transition`, `nothing_to_roll_back`, `superseded` or `target_busy`, and `signing_key_revoked` when it would lead
    to a bundle whose key is revoked. A deployment in `deploying` can always be cancelled, even before a target was assigned.
    """
    if deployment.status not in ROLLS_BACK_FROM:
        raise StateConflict(deployment.status, S.ROLLING_BACK.value, allowed_from(deployment))
    if deployment.deploying_at is None:
        raise Conflict("Its build failed, so nothing was delivered.", code="nothing_to_roll_back")
    assigned = Target.objects.filter(deployment=deployment, sequence__isnull=False, agent_gone_at__isnull=True)
    everywhere = dict(assigned.values_list("pk", "agent_id"))
    under_way = deployment.status == S.DEPLOYING.value
    if not everywhere and not under_way:
        raise Conflict("None of its agents is enrolled any more.", code="nothing_to_roll_back")
    busy = busy_agents(deployment.environment, exclude=deployment.pk)
    clash = next((busy[agent_id] for agent_id in everywhere.values() if agent_id in busy), None)
    if clash is not None:
        raise Conflict(
            "Another deployment is in progress on one of its targets.",
            code="target_busy",
            extra={"deployment_id": str(clash)},
        )
    _lock_targets(deployment)
    covered: list[Target] = list(targets_where_latest(deployment))
    if not covered and not under_way:
        raise Conflict("Newer deployments superseded it on all of its targets.", code="superseded")
    refused = rollback_to_revoked_key(deployment)
    if refused is not None:
        raise Conflict(
            "The previous bundle's signing key is revoked. Request a new deployment instead.",
            code=REVOKED,
            extra={"deployment_id": str(refused)},
        )
    now = clock.now()
    untouched = [t.pk for t in covered if _untouched(t)]
    undone = [t.pk for t in covered if t.status == T.ROLLED_BACK.value]
    ended = {*untouched, *undone}
    waiting = [t.pk for t in covered if t.pk not in ended]
    rows = Target.objects.filter(deployment=deployment)
    # superseded by a newer deployment since an earlier attempt: no report is expected
    unsettled = rows.filter(settled_at__isnull=True, sequence__isnull=False).values_list("pk", flat=True)
    update_each(rows, set(unsettled) - {t.pk for t in covered}, settled_at=now, updated_at=now)
    update_each(rows, undone, rollback_at=now, settled_at=now, updated_at=now)
    update_each(
        rows, untouched, status=T.ROLLED_BACK, rollback_at=now, phase_started_at=now, settled_at=now, updated_at=now
    )
    update_each(rows, waiting, rollback_at=now, phase_started_at=now, settled_at=None, updated_at=now)
    agents.announce(everywhere.values())
    move(
        deployment,
        "roll_back",
        actor=actor,
        trigger=trigger,
        reason=reason,
        status_reason=format_status_reason(trigger, reason),
        rolling_back_at=now,
        settled_at=None,
    )
    fault_point("deployments.rollback.begun")
    apply_rollback_progress(deployment)


def rollback(*, actor: Principal, scope: Scope, deployment_id: uuid.UUID, reason: str = "") -> Deployment:
    """Roll a deployment back on the targets where it is the latest. Needs no approval: it restores an approved state.

    Raises NotFound; Conflict `invalid_transition`, `nothing_to_roll_back`, `superseded`, `target_busy`, `signing_key_revoked`.
    """
    with transaction.atomic():
        environment = lock_environment(scope.require_environment().pk)
        deployment = locked_deployment(environment, deployment_id)
        begin_rollback(deployment, actor=actor.ref, trigger="rollback_requested", reason=reason)
        reconcile_after_transition(deployment)
        fault_point("deployments.rollback.before_commit")
        return locked_deployment(environment, deployment_id)
