"""Approving and denying."""

from __future__ import annotations

import uuid

from django.db import IntegrityError, transaction

from apps.access.policy import Denied
from apps.access.principals import Principal
from apps.approvals.models import Approval, ApprovalStatus, Decision
from apps.approvals.registry import subject_of
from apps.approvals.selectors import may_decide, present
from apps.approvals.services.credentials import mint
from apps.approvals.services.ending import expire
from apps.approvals.services.moves import locked_approval, move
from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.errors import Conflict, Forbidden, NotFound, StateConflict, Unprocessable
from apps.core.fsm import allowed_from
from apps.runtime.faults import fault_point
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environment, scope_of

POLICY_ACTOR = ActorRef("system", None, "policy")
_WHY = {
    "person_required": "A decision needs a person.",
    "permission_denied": "This needs the permission OperateEnvironment.",
    "self_approval": "Nobody decides what they asked for.",
}


class _WindowPassed(Exception):
    """The decision came too late; leaves the transaction so that the expiry can be written in one of its own."""


def _refuse_who_may_not(actor: Principal, approval: Approval) -> None:
    verdict = may_decide(actor, approval)
    if not isinstance(verdict, Denied):
        return
    scope = scope_of(approval.environment)
    audit.record_denial(
        organization_id=scope.organization_id,
        action="approval.decide",
        actor=actor.ref,
        target=f"approval:{approval.pk}",
        reason=verdict.reason,
        scope=scope.as_dict(),
    )
    if verdict.reason == "policy_recently_weakened":
        raise Conflict("You weakened this environment's policy in the last 24 hours.", code=verdict.reason)
    if verdict.reason == "permission_denied" and not verdict.visible:
        raise NotFound()
    raise Forbidden(_WHY[verdict.reason], code=verdict.reason)


def decide(
    *, actor: Principal, scope: Scope, approval_id: uuid.UUID, decision: str, comment: str = "", shown_digest: str
) -> Approval:
    """One person's approve or deny of exactly what `shown_digest` stands for.

    At quorum the credential is minted and the subject told, in the same transaction. Raises Forbidden
    (`person_required`, `permission_denied`, `self_approval`); Conflict `policy_recently_weakened`,
    `approval_expired` (and moves it), `stale_decision`, `already_decided`; StateConflict on a decided approval;
    Unprocessable `comment_required`.
    """
    if decision not in ("approve", "deny"):
        raise ValueError(decision)
    reading = Approval.objects.select_related("environment__project__organization")
    found = reading.filter(pk=approval_id, environment=scope.here).first()
    if found is None:
        raise NotFound()
    _refuse_who_may_not(actor, found)
    try:
        with transaction.atomic():
            decided = _decide(actor, scope, approval_id, decision, comment.strip(), shown_digest)
            fault_point("approvals.decide.before_commit")
    except _WindowPassed:
        expire(environment_id=scope.here.pk, approval_id=approval_id)
        raise Conflict("The window to decide has passed.", code="approval_expired") from None
    fault_point("approvals.decide.after_commit")
    return decided


def _decide(
    actor: Principal, scope: Scope, approval_id: uuid.UUID, decision: str, comment: str, shown_digest: str
) -> Approval:
    environment = lock_environment(scope.here.pk)
    approval = locked_approval(environment, approval_id)
    if isinstance(may_decide(actor, approval), Denied) or actor.id is None:
        raise Forbidden("Your role changed while you decided.")
    target = ApprovalStatus.APPROVED.value if decision == "approve" else ApprovalStatus.DENIED.value
    if approval.status == ApprovalStatus.EXPIRED.value:
        raise Conflict("The window to decide has passed.", code="approval_expired")
    if approval.status != ApprovalStatus.PENDING.value:
        raise StateConflict(str(approval.status), target, allowed_from(approval))
    now = clock.now()
    if approval.expires_at <= now:
        raise _WindowPassed
    now_shown = present(approval)
    if shown_digest != now_shown.shown_digest:
        raise Conflict(
            "What is being decided has changed since you saw it. Look again.",
            code="stale_decision",
            extra={"shown_digest": now_shown.shown_digest},
        )
    if decision == "deny" and approval.policy["require_comment_on_deny"] and not comment:
        raise Unprocessable("Say why you deny.", code="comment_required")
    try:
        with transaction.atomic():
            Decision.objects.create(
                approval=approval,
                reviewer_id=actor.id,
                reviewer_name=actor.name[:200],
                decision=decision,
                comment=comment,
                digest=shown_digest,
                decided_at=now,
            )
    except IntegrityError:
        raise Conflict("You have decided this already.", code="already_decided") from None
    fault_point("approvals.vote.written")
    frozen = {"base": now_shown.base, "shown_digest": now_shown.shown_digest, "decided_at": now}
    if decision == "deny":
        move(approval, "deny", actor=actor.ref, trigger="denied", reason=comment, **frozen)
        subject_of(approval).on_denied(approval=approval, actor=actor.ref, trigger="denied", reason=comment)
        return locked_approval(environment, approval_id)
    votes = [d for d in now_shown.counting if d.decision == "approve"]
    in_favour = sorted({str(d.reviewer_id) for d in votes} | {str(actor.id)})
    if len(in_favour) >= approval.required_approvals:
        columns = {**frozen, **mint(approval, issued_by=in_favour, now=now)}
        move(approval, "approve", actor=actor.ref, trigger="quorum", reason=comment, **columns)
        fault_point("approvals.credential.minted")
        subject_of(approval).on_approved(approval=approval, actor=actor.ref)
    else:
        audit.record(
            organization_id=scope.organization_id,
            action="approval.voted",
            actor=actor.ref,
            target=f"approval:{approval.pk}",
            scope=scope.as_dict(),
            details={"decision": decision, "votes": len(in_favour), "required": approval.required_approvals},
        )
    return locked_approval(environment, approval_id)


def approve_by_policy(*, approval: Approval) -> Approval:
    """Where the policy wants nobody, it approves itself, on the record. In the caller's transaction."""
    if approval.required_approvals:
        raise StateConflict(str(approval.status), ApprovalStatus.APPROVED.value, [], "The policy wants people.")
    now = clock.now()
    columns = {"decided_at": now, **mint(approval, issued_by=["policy"], now=now)}
    move(approval, "approve", actor=POLICY_ACTOR, trigger="policy", **columns)
    subject_of(approval).on_approved(approval=approval, actor=POLICY_ACTOR)
    return approval
