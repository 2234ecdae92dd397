"""Quorum of approvals, checked against current data at each vote and whenever its conditions change."""

from __future__ import annotations

import datetime as dt
import uuid

from django.db import transaction
from django.db.models import Count, F, Q

from apps.approvals.models import Approval, ApprovalStatus
from apps.approvals.registry import subject_of
from apps.approvals.selectors import CurrentFacts, current_facts
from apps.approvals.services.credentials import mint
from apps.approvals.services.transitions import lock_approval, move
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR, ActorRef
from apps.core.isolation import for_each
from apps.runtime.faults import fault_point


def facts_at_decision(facts: CurrentFacts, now: dt.datetime) -> dict[str, object]:
    """Return the columns that store what was decided on."""
    return {"base": facts.base, "shown_digest": facts.shown_digest, "decided_at": now}


def grant(
    approval: Approval,
    facts: CurrentFacts,
    *,
    voters: set[str],
    actor: ActorRef,
    trigger: str,
    reason: str = "",
    now: dt.datetime,
) -> None:
    """Approve, issue the credential in the voters' names and notify the subject, in the caller's transaction."""
    columns = {**facts_at_decision(facts, now), **mint(approval, issued_by=sorted(voters), now=now)}
    move(approval, "approve", actor=actor, trigger=trigger, reason=reason, **columns)
    fault_point("approvals.credential.minted")
    subject_of(approval).on_approved(approval=approval, actor=actor)


def complete_quorum(*, environment_id: uuid.UUID, approval_id: uuid.UUID) -> bool:
    """Approve a pending approval that has enough votes. Returns False if there was nothing to do.

    A vote counts as in `decide`: given on the current digest, by a user who may still decide.
    """
    with transaction.atomic():
        approval = lock_approval(environment_id, approval_id)
        now = clock.now()
        if approval is None or approval.status != ApprovalStatus.PENDING.value or approval.expires_at <= now:
            return False
        facts = current_facts(approval)
        if not approval.required_approvals or facts.approvals < approval.required_approvals:
            return False
        voters = {str(d.reviewer_id) for d in facts.counting if d.decision == "approve"}
        grant(approval, facts, voters=voters, actor=SYSTEM_ACTOR, trigger="quorum_restored", now=now)
    return True


def complete_quorums(where: Q | None = None) -> int:
    """Approve every pending approval (of those that `where` selects) that has enough votes. Returns their number.

    A failure does not block the others; the periodic job retries it.
    """
    due = (
        Approval.objects.filter(
            where if where is not None else Q(),
            status=ApprovalStatus.PENDING.value,
            expires_at__gt=clock.now(),
            required_approvals__gt=0,
            environment__deleted_at__isnull=True,
        )
        .annotate(voters=Count("decisions__reviewer_id", distinct=True))
        .filter(voters__gte=F("required_approvals"))
        .order_by("expires_at")
    )
    rows = list(due.values_list("environment_id", "pk"))
    return for_each("approval_quorum", rows, lambda row: complete_quorum(environment_id=row[0], approval_id=row[1]))


def sweep_quorums(now: dt.datetime) -> int:
    """Approve pending approvals whose quorum was missed, for example because a process ended. Returns their number."""
    return complete_quorums()


def complete_quorums_of_organization(organization_id: uuid.UUID) -> None:
    """Check the quorums of an organization after its roles changed."""
    complete_quorums(Q(environment__project__organization_id=organization_id))


def complete_quorums_of_environment(environment_id: uuid.UUID) -> None:
    """Check the quorums of an environment after the deployments of its agents changed."""
    complete_quorums(Q(environment_id=environment_id))
