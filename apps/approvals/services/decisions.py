"""Approve and deny."""

from __future__ import annotations

import uuid

from django.db import IntegrityError, transaction

from apps.access.policy import Allowed, Denied
from apps.access.principals import Principal
from apps.approvals.models import Approval, ApprovalStatus, Decision
from apps.approvals.registry import subject_of
from apps.approvals.selectors import Deciders, NotYet, current_facts, get_approval
from apps.approvals.services.credentials import mint
from apps.approvals.services.expiry_and_revocation import expire_outside
from apps.approvals.services.quorum import facts_at_decision, grant
from apps.approvals.services.transitions import locked_approval, move
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
    "self_approval": "You can't decide on your own request.",
}


class _WindowPassed(Exception):
    """The decision is too late. Raised out of the transaction, so that the expiry is written in its own."""


def _not_yet(verdict: NotYet) -> Conflict:
    return Conflict(
        "You can't approve this yet: your role, or the requester's, was granted in the last 24 hours by the other, or by the same "
        "person to both, or your password was reset. You can deny it.",
        code=verdict.reason,
        extra={"may_approve_at": clock.rfc3339(verdict.until)},
    )


def _verdict(actor: Principal, approval: Approval, decision: str) -> Allowed | Denied:
    deciders = Deciders(approval)
    return deciders.may_approve(actor) if decision == "approve" else deciders.may_decide(actor)


def _refuse_who_may_not(actor: Principal, approval: Approval, decision: str) -> None:
    verdict = _verdict(actor, approval, decision)
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
    if isinstance(verdict, NotYet):
        raise _not_yet(verdict)
    if verdict.reason == "policy_recently_weakened":
        raise Conflict("You weakened this environment's policy in the last 24 hours.", code=verdict.reason)
    if verdict.reason == "permission_denied" and not verdict.visible:
        raise NotFound()
    raise Forbidden(_WHY[verdict.reason], code=verdict.reason)


def decide(
    *, actor: Principal, scope: Scope, approval_id: uuid.UUID, decision: str, comment: str = "", shown_digest: str
) -> Approval:
    """Store a user's approving or denying vote on what `shown_digest` identifies.

    At quorum the credential is issued and the subject notified, in the same transaction. Raises Forbidden
    (`person_required`, `permission_denied`, `self_approval`); Conflict `policy_recently_weakened`,
    `reviewer_recently_added` (approving only), `approval_expired` (and expires it), `stale_decision`,
    `already_decided`; StateConflict on a decided approval; Unprocessable `comment_required`.
    """
    if decision not in ("approve", "deny"):
        raise ValueError(decision)
    _refuse_who_may_not(actor, get_approval(scope, approval_id), decision)
    try:
        with transaction.atomic():
            decided = _decide(actor, scope, approval_id, decision, comment.strip(), shown_digest)
            fault_point("approvals.decide.before_commit")
    except _WindowPassed:
        expire_outside(environment_id=scope.require_environment().pk, approval_id=approval_id)
        raise Conflict("The time to decide has passed.", code="approval_expired") from None
    fault_point("approvals.decide.after_commit")
    return decided


def _decide(
    actor: Principal, scope: Scope, approval_id: uuid.UUID, decision: str, comment: str, shown_digest: str
) -> Approval:
    environment = lock_environment(scope.require_environment().pk)
    approval = locked_approval(environment, approval_id)
    verdict = _verdict(actor.fresh(), approval, decision)
    if isinstance(verdict, NotYet):
        raise _not_yet(verdict)
    if isinstance(verdict, Denied) or actor.id is None:
        raise Forbidden("Your role changed during the request.")
    target = ApprovalStatus.APPROVED.value if decision == "approve" else ApprovalStatus.DENIED.value
    if approval.status == ApprovalStatus.EXPIRED.value:
        raise Conflict("The time to decide has passed.", code="approval_expired")
    if approval.status != ApprovalStatus.PENDING.value:
        raise StateConflict(str(approval.status), target, allowed_from(approval))
    now = clock.now()
    if approval.expires_at <= now:
        raise _WindowPassed
    now_shown = current_facts(approval)
    if shown_digest != now_shown.shown_digest:
        raise Conflict(
            "The request has changed since you viewed it. Reload it and decide again.",
            code="stale_decision",
            extra={"shown_digest": now_shown.shown_digest},
        )
    if decision == "deny" and approval.policy["require_comment_on_deny"] and not comment:
        raise Unprocessable("A denial needs a comment.", code="comment_required")
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
        raise Conflict("You have already decided.", code="already_decided") from None
    fault_point("approvals.vote.written")
    if decision == "deny":
        move(approval, "deny", actor=actor.ref, trigger="denied", reason=comment, **facts_at_decision(now_shown, now))
        subject_of(approval).on_denied(approval=approval, actor=actor.ref, trigger="denied", reason=comment)
        return locked_approval(environment, approval_id)
    votes = [d for d in now_shown.counting if d.decision == "approve"]
    in_favour = {str(d.reviewer_id) for d in votes} | {str(actor.id)}
    if len(in_favour) >= approval.required_approvals:
        grant(approval, now_shown, voters=in_favour, actor=actor.ref, trigger="quorum", reason=comment, now=now)
    else:
        audit.record_in(
            scope,
            action="approval.voted",
            actor=actor.ref,
            target=f"approval:{approval.pk}",
            details={"decision": decision, "votes": len(in_favour), "required": approval.required_approvals},
        )
    return locked_approval(environment, approval_id)


def approve_by_policy(*, approval: Approval) -> Approval:
    """Approve where the policy requires no reviewers, with an event. In the caller's transaction."""
    if approval.required_approvals:
        raise StateConflict(str(approval.status), ApprovalStatus.APPROVED.value, [], "The policy requires reviewers.")
    now = clock.now()
    columns = {"decided_at": now, **mint(approval, issued_by=["policy"], now=now)}
    move(approval, "approve", actor=POLICY_ACTOR, trigger="policy", **columns)
    subject_of(approval).on_approved(approval=approval, actor=POLICY_ACTOR)
    return approval
