"""Expiry and revocation."""

from __future__ import annotations

import datetime as dt
import uuid

from django.db import transaction

from apps.access.policy import require
from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.approvals.models import FINAL, Approval, ApprovalStatus
from apps.approvals.registry import subject_of
from apps.approvals.services.moves import locked_approval, move
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR
from apps.core.errors import Forbidden, NotFound, StateConflict
from apps.core.fsm import allowed_from
from apps.runtime.faults import fault_point
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environment


def expire(*, environment_id: uuid.UUID, approval_id: uuid.UUID) -> bool:
    """Move a pending approval whose window has passed to `expired`; False when there was nothing to move."""
    with transaction.atomic():
        try:
            environment = lock_environment(environment_id)
            approval = locked_approval(environment, approval_id)
        except NotFound:
            return False
        if approval.status != ApprovalStatus.PENDING.value or approval.expires_at > clock.now():
            return False
        move(approval, "expire", actor=SYSTEM_ACTOR, trigger="expired", decided_at=clock.now())
        subject_of(approval).on_denied(approval=approval, actor=SYSTEM_ACTOR, trigger="expired", reason="expired")
        fault_point("approvals.expire.before_commit")
    fault_point("approvals.expire.after_commit")
    return True


def expire_due(now: dt.datetime) -> int:
    """The sweep: every pending approval whose window has passed; how many."""
    due = Approval.objects.filter(
        status=ApprovalStatus.PENDING.value, expires_at__lte=now, environment__deleted_at__isnull=True
    )
    rows = list(due.values_list("environment_id", "pk")[:500])
    return sum(expire(environment_id=where, approval_id=which) for where, which in rows)


def tell_expired_credentials(now: dt.datetime) -> int:
    """The second clock: tell the subjects of approvals whose credential has run out, once each; how many."""
    due = Approval.objects.filter(
        status=ApprovalStatus.APPROVED.value,
        credential_expiry_told=False,
        credential_expires_at__lte=now,
        environment__deleted_at__isnull=True,
    )
    told = 0
    for environment_id, approval_id in list(due.values_list("environment_id", "pk")[:500]):
        with transaction.atomic():
            try:
                approval = locked_approval(lock_environment(environment_id), approval_id)
            except NotFound:
                continue
            if approval.status != ApprovalStatus.APPROVED.value:
                continue
            Approval.objects.filter(pk=approval.pk).update(credential_expiry_told=True)
            subject_of(approval).on_credential_expired(approval=approval)
            fault_point("approvals.credential_expiry.before_commit")
            told += 1
    return told


def revoke(*, actor: Principal, scope: Scope, approval_id: uuid.UUID, comment: str = "") -> Approval:
    """Withdraw what you asked for while it is pending, or take a grant back before the deployment completed.

    The requester may withdraw; anyone with OperateEnvironment may revoke. Raises Forbidden, StateConflict, and what the
    subject raises (Conflict `deployment_completed`).
    """
    if not actor.is_person:
        raise Forbidden("This needs a person.", code="person_required")
    require(actor, Permission.OPERATE_ENVIRONMENT, scope)
    with transaction.atomic():
        environment = lock_environment(scope.here.pk)
        approval = locked_approval(environment, approval_id)
        was = str(approval.status)
        if was in FINAL:
            raise StateConflict(was, ApprovalStatus.REVOKED.value, allowed_from(approval))
        pending = was == ApprovalStatus.PENDING.value
        withdrawn = pending and approval.requested_by == actor.id
        move(
            approval,
            "revoke",
            actor=actor.ref,
            trigger="withdrawn" if withdrawn else "revoked",
            reason=comment,
            decided_at=clock.now(),
        )
        subject = subject_of(approval)
        if pending:
            subject.on_denied(approval=approval, actor=actor.ref, trigger="withdrawn", reason=comment)
        else:
            subject.on_revoked(approval=approval, actor=actor.ref, reason=comment)
        fault_point("approvals.revoke.before_commit")
        return locked_approval(environment, approval_id)


def revoke_for_subject(*, actor: Principal, approval: Approval, comment: str, trigger: str) -> Approval:
    """The subject was called off: its approval goes with it. In the caller's transaction, the environment locked.

    Does not tell the subject, which has moved itself. Nothing happens to one that is final already.
    """
    fresh = locked_approval(lock_environment(approval.environment_id), approval.pk)
    if fresh.status not in FINAL:
        move(fresh, "revoke", actor=actor.ref, trigger=trigger, reason=comment, decided_at=clock.now())
    return fresh
