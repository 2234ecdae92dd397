"""Expiry and revocation of approvals."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import NoReturn

from django.db import transaction

from apps.access.policy import require
from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.approvals.models import FINAL, Approval, ApprovalStatus
from apps.approvals.registry import subject_of
from apps.approvals.services.transitions import lock_approval, locked_approval, move
from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR
from apps.core.db import outside_transaction
from apps.core.errors import Conflict, Forbidden, StateConflict, Unprocessable
from apps.core.fsm import allowed_from
from apps.core.isolation import for_each
from apps.runtime.faults import fault_point
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environment

SWEEP_SECONDS = 60.0


def expire(*, environment_id: uuid.UUID, approval_id: uuid.UUID) -> bool:
    """Expire a pending approval whose time has passed. Returns False if there was nothing to do."""
    with transaction.atomic():
        approval = lock_approval(environment_id, approval_id)
        if approval is None or approval.status != ApprovalStatus.PENDING.value or approval.expires_at > clock.now():
            return False
        move(approval, "expire", actor=SYSTEM_ACTOR, trigger="expired", decided_at=clock.now())
        subject_of(approval).on_denied(approval=approval, actor=SYSTEM_ACTOR, trigger="expired", reason="expired")
        fault_point("approvals.expire.before_commit")
    fault_point("approvals.expire.after_commit")
    return True


def expire_outside(*, environment_id: uuid.UUID, approval_id: uuid.UUID) -> None:
    """Expire an approval whose time has passed, also if the caller's transaction is rolled back by its refusal."""
    outside_transaction(lambda: expire(environment_id=environment_id, approval_id=approval_id))


def expire_due(now: dt.datetime) -> int:
    """Expire every pending approval whose time has passed. Returns their number. A failure does not block the others."""
    due = Approval.objects.filter(
        status=ApprovalStatus.PENDING.value, expires_at__lte=now, environment__deleted_at__isnull=True
    ).order_by("expires_at")
    rows = list(due.values_list("environment_id", "pk"))
    return for_each(
        "approval_expiry",
        rows,
        lambda row: expire(environment_id=row[0], approval_id=row[1]),
        seconds=SWEEP_SECONDS,
    )


def notify_expired_credentials(now: dt.datetime) -> int:
    """Notify the subjects of approvals whose credential has expired, once each. Returns their number. A failure does
    not block the others.
    """
    due = Approval.objects.filter(
        status=ApprovalStatus.APPROVED.value,
        credential_expiry_told=False,
        credential_expires_at__lte=now,
        environment__deleted_at__isnull=True,
    ).order_by("credential_expires_at")
    rows = list(due.values_list("environment_id", "pk"))
    return for_each("credential_expiry", rows, lambda row: _notify_expired(*row), seconds=SWEEP_SECONDS)


def _notify_expired(environment_id: uuid.UUID, approval_id: uuid.UUID) -> bool:
    with transaction.atomic():
        approval = lock_approval(environment_id, approval_id)
        if approval is None or approval.status != ApprovalStatus.APPROVED.value or approval.credential_expiry_told:
            return False
        Approval.objects.filter(pk=approval.pk).update(credential_expiry_told=True)
        subject_of(approval).on_credential_expired(approval=approval)
        fault_point("approvals.credential_expiry.before_commit")
    return True


def revoke(*, actor: Principal, scope: Scope, approval_id: uuid.UUID, comment: str = "") -> Approval:
    """Withdraw your own pending request, or revoke an approval before the deployment completed.

    Only the requester can withdraw; other users deny instead. Revocation needs OperateEnvironment and a comment. Raises
    Forbidden (`person_required`, `permission_denied`); StateConflict on a final approval; Conflict `approval_expired`
    (and expires it); Unprocessable `comment_required`; and errors of the subject (Conflict `deployment_completed`).
    """
    if not actor.is_person:
        raise Forbidden("This needs a person.", code="person_required")
    require(actor, Permission.OPERATE_ENVIRONMENT, scope)
    found = Approval.objects.filter(pk=approval_id, environment=scope.require_environment()).first()
    if found is not None and found.status == ApprovalStatus.PENDING.value and found.requested_by != actor.acts_for:
        refuse_withdrawal(actor=actor, scope=scope, target=f"approval:{approval_id}", action="approval.withdraw")
    try:
        return _revoke(actor, scope, approval_id, comment.strip())
    except _WindowPassed:
        expire_outside(environment_id=scope.require_environment().pk, approval_id=approval_id)
        raise Conflict("The time to decide has passed.", code="approval_expired") from None


class _WindowPassed(Exception):
    """The approval has expired. Raised out of the transaction, so that the expiry is written in its own."""


WITHDRAWN_BY_REQUESTER = "Only the requester can withdraw a pending request. To end it, deny it with a comment."


def refuse_withdrawal(*, actor: Principal, scope: Scope, target: str, action: str) -> NoReturn:
    """Record that another user than the requester tried to withdraw a pending request, and raise Forbidden."""
    audit.record_denial(
        organization_id=scope.organization_id,
        action=action,
        actor=actor.ref,
        target=target,
        reason="not_the_requester",
        scope=scope.as_dict(),
    )
    raise Forbidden(WITHDRAWN_BY_REQUESTER, code="permission_denied")


def require_comment(comment: str) -> None:
    """Require a comment for a revocation. Raises Unprocessable `comment_required`."""
    if not comment.strip():
        raise Unprocessable("A revocation needs a comment.", code="comment_required")


def _revoke(actor: Principal, scope: Scope, approval_id: uuid.UUID, comment: str) -> Approval:
    with transaction.atomic():
        environment = lock_environment(scope.require_environment().pk)
        approval = locked_approval(environment, approval_id)
        was = str(approval.status)
        if was in FINAL:
            raise StateConflict(was, ApprovalStatus.REVOKED.value, allowed_from(approval))
        pending = was == ApprovalStatus.PENDING.value
        if pending and approval.expires_at <= clock.now():
            raise _WindowPassed
        if not pending:
            require_comment(comment)
        move(
            approval,
            "revoke",
            actor=actor.ref,
            trigger="withdrawn" if pending else "revoked",
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
    """Revoke the approval of a cancelled subject, in the caller's transaction, with the environment locked.

    Does not notify the subject, which changed its own status. No effect on a final approval.
    """
    fresh = locked_approval(lock_environment(approval.environment_id), approval.pk)
    if fresh.status not in FINAL:
        move(fresh, "revoke", actor=actor.ref, trigger=trigger, reason=comment, decided_at=clock.now())
    return fresh
