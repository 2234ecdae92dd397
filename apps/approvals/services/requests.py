"""Requests for approval."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.access.selectors import people_with
from apps.approvals.models import Action, Approval, ApprovalStatus
from apps.approvals.policy import policy_of, weakened_until
from apps.approvals.reviewers import approving_from
from apps.approvals.selectors import digest_of
from apps.approvals.services.transitions import note
from apps.core import clock
from apps.core.errors import Conflict
from apps.tenancy.scope import Scope


def _no_eligible_reviewer(required: int, able: int, later: Mapping[uuid.UUID, dt.datetime]) -> Conflict:
    """Return the error that too few people can decide, with the earliest time at which another one can."""
    text = (
        f"The policy requires {required} approvals, and {able - len(later)} people can decide (not counting the requester and "
        "people who weakened the policy or were added recently)."
    )
    extra: dict[str, Any] = {}
    if later:
        earliest = str(clock.rfc3339(min(later.values())))
        extra = {"not_yet": len(later), "earliest_at": earliest}
        text += f" {len(later)} more can't decide yet; the earliest can at {earliest}."
    return Conflict(text, code="no_eligible_reviewer", extra=extra)


def request_approval(
    *,
    actor: Principal,
    scope: Scope,
    action: str,
    subject_id: uuid.UUID,
    spec_hash: str,
    config_hash: str,
    capabilities: Sequence[str],
    strategy: Mapping[str, Any],
    target_agent_ids: Sequence[str],
    base: Mapping[str, str | None],
    reason: str = "",
) -> Approval:
    """Create a pending approval with a copy of the policy, in the caller's transaction, with the environment locked.

    The requester is the person that `actor` acts for. Raises Conflict `policy_recently_weakened` if that person weakened
    the policy in the last 24 hours, and `no_eligible_reviewer` if fewer people can decide than the policy requires. If the
    policy requires none, the caller calls `approve_by_policy`.
    """
    environment = scope.require_environment()
    now = clock.now()
    policy = policy_of(environment)
    weak = weakened_until(environment, now)
    if actor.acts_for in weak:
        raise Conflict("You weakened this environment's policy in the last 24 hours.", code="policy_recently_weakened")
    required = int(policy["required_approvals"])
    if required:
        able = set(people_with(Permission.OPERATE_ENVIRONMENT, scope).values_list("pk", flat=True))
        if policy["prevent_self_approval"] and actor.acts_for is not None:
            able.discard(actor.acts_for)
        later = {person: moment for person, moment in weak.items() if person in able}
        added = approving_from(able, scope=scope, requester=actor.acts_for, requested_at=now, now=now)
        later |= {person: max(moment, later.get(person, moment)) for person, moment in added.items()}
        if len(able) - len(later) < required:
            raise _no_eligible_reviewer(required, len(able), later)
    approval = Approval(
        environment=environment,
        action=action,
        requested_by=actor.acts_for,
        requested_by_name=actor.name[:200],
        reason=reason,
        policy=policy,
        required_approvals=required,
        expires_at=now + dt.timedelta(hours=int(policy["approval_window_hours"])),
        spec_hash=spec_hash,
        config_hash=config_hash,
        capabilities=sorted(capabilities),
        strategy=dict(strategy),
        target_agent_ids=sorted(target_agent_ids),
        base=dict(base),
        created_at=now,
    )
    approval.shown_digest = digest_of(approval, approval.base)
    if action == Action.DEPLOY.value:
        approval.deployment_id = subject_id
    else:
        approval.replay_id = subject_id
    approval.save(force_insert=True)
    to = ApprovalStatus.PENDING.value
    note(approval, from_="", to=to, actor=actor.ref, trigger="requested", reason=reason)
    return approval
