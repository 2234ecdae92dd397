"""Going back: to what each target had last confirmed, without asking again."""

from __future__ import annotations

import uuid

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from apps.access.principals import Principal
from apps.agents import services as agents
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.errors import Conflict, StateConflict
from apps.core.fsm import allowed_from
from apps.deployments.desired import desired_of, without
from apps.deployments.models import Deployment, DeploymentStatus, Target, TargetStatus
from apps.deployments.selectors import walk
from apps.deployments.services.aftermath import after_moves
from apps.deployments.services.judging import judge_rollback
from apps.deployments.services.moves import locked_deployment, move, said
from apps.deployments.services.queue import holders
from apps.runtime.faults import fault_point
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environment

S, T = DeploymentStatus, TargetStatus

REVOKED = "signing_key_revoked"
NEVER_FETCHED = (T.ASSIGNED.value, T.UNREACHABLE.value, T.FAILED.value)
"""What a target may say that was never handed the bundle."""
ROLLS_BACK_FROM = (S.DEPLOYING.value, S.ACTIVE.value, S.FAILED.value)


def latest_targets(deployment: Deployment) -> QuerySet[Target]:
    """The targets on which `deployment` is the latest: assigned, the agent still there, and nothing newer counts.

    Something newer counts unless it failed there, failed before it was activated there, or was itself taken back.
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


def revoked_way_back(deployment: Deployment) -> uuid.UUID | None:
    """The deployment under a revoked signing key that a rollback would bring some agent back to; None when there is none.

    Agents that never fetched this one need nothing brought back: they run what they ran.
    """
    revoked = Deployment.objects.filter(environment=deployment.environment, key_revoked_at__isnull=False)
    if not revoked.exists():
        return None
    back: set[uuid.UUID] = set()
    for target in latest_targets(deployment):
        if not _untouched(target):
            wanted = desired_of(without(walk(target.agent_id), deployment.pk, clock.now()))
            back |= {wanted.deployment_id} if wanted.deployment_id else set()
    return revoked.filter(pk__in=back).order_by("-sequence").values_list("pk", flat=True).first()


def begin_rollback(deployment: Deployment, *, actor: ActorRef, trigger: str, reason: str) -> None:
    """Move to `rolling_back` and tell the targets, in the caller's transaction (its environment locked).

    Only targets that were assigned are touched; those that never fetched have nothing to undo and are settled at once.
    Raises Conflict: `invalid_transition`, `nothing_to_roll_back`, `superseded`, `target_busy`. What is still deploying can
    always be called off, even while none of its agents was told or is there. Conflict `signing_key_revoked` where it would lead
    to a bundle that no host believes any more.
    """
    if deployment.status not in ROLLS_BACK_FROM:
        raise StateConflict(deployment.status, S.ROLLING_BACK.value, allowed_from(deployment))
    if deployment.deploying_at is None:
        raise Conflict("Its build failed: nothing was handed out.", code="nothing_to_roll_back")
    assigned = Target.objects.filter(deployment=deployment, sequence__isnull=False, agent_gone_at__isnull=True)
    everywhere = dict(assigned.values_list("pk", "agent_id"))
    under_way = deployment.status == S.DEPLOYING.value
    if not everywhere and not under_way:
        raise Conflict("None of its agents is there any more.", code="nothing_to_roll_back")
    busy = holders(deployment.environment, aside=deployment.pk)
    clash = next((busy[agent_id] for agent_id in everywhere.values() if agent_id in busy), None)
    if clash is not None:
        raise Conflict(
            "Another deployment is under way on one of its targets.",
            code="target_busy",
            extra={"deployment_id": str(clash)},
        )
    covered: list[Target] = list(latest_targets(deployment))
    if not covered and not under_way:
        raise Conflict("Newer deployments took over all of its targets.", code="superseded")
    refused = revoked_way_back(deployment)
    if refused is not None:
        raise Conflict(
            "It would go back to a bundle under a signing key that was revoked. Deploy again instead.",
            code=REVOKED,
            extra={"deployment_id": str(refused)},
        )
    now = clock.now()
    untouched = [t.pk for t in covered if _untouched(t)]
    undone = [t.pk for t in covered if t.status == T.ROLLED_BACK.value]
    waiting = [t.pk for t in covered if t.pk not in {*untouched, *undone}]
    rows = Target.objects.filter(deployment=deployment)
    # somebody newer took these over since an earlier try: nobody will hear of them again
    left = rows.filter(settled_at__isnull=True, sequence__isnull=False).exclude(pk__in=[t.pk for t in covered])
    left.update(settled_at=now, updated_at=now)
    rows.filter(pk__in=undone).update(rollback_at=now, settled_at=now, updated_at=now)
    rows.filter(pk__in=untouched).update(
        status=T.ROLLED_BACK, rollback_at=now, phase_started_at=now, settled_at=now, updated_at=now
    )
    rows.filter(pk__in=waiting).update(rollback_at=now, phase_started_at=now, settled_at=None, updated_at=now)
    agents.announce(everywhere.values())
    move(
        deployment,
        "roll_back",
        actor=actor,
        trigger=trigger,
        reason=reason,
        status_reason=said(trigger, reason),
        rolling_back_at=now,
        settled_at=None,
    )
    fault_point("deployments.rollback.begun")
    judge_rollback(deployment)


def rollback(*, actor: Principal, scope: Scope, deployment_id: uuid.UUID, reason: str = "") -> Deployment:
    """Take a deployment back where it is the latest. No approval: it returns to what was approved and active there.

    Raises NotFound; Conflict `invalid_transition`, `nothing_to_roll_back`, `superseded`, `target_busy`, `signing_key_revoked`.
    """
    with transaction.atomic():
        environment = lock_environment(scope.here.pk)
        deployment = locked_deployment(environment, deployment_id)
        begin_rollback(deployment, actor=actor.ref, trigger="rollback_requested", reason=reason)
        after_moves(deployment)
        fault_point("deployments.rollback.before_commit")
        return locked_deployment(environment, deployment_id)
