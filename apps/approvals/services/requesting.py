"""Asking for agreement."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.access.selectors import people_with
from apps.approvals.models import Action, Approval, ApprovalStatus
from apps.approvals.policy import policy_of, weakeners
from apps.approvals.selectors import digest_of
from apps.approvals.services.moves import note
from apps.core import clock
from apps.core.errors import Conflict
from apps.core.ids import new_id
from apps.tenancy.scope import Scope


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
    """A pending approval under a copy of the policy in force, in the caller's transaction, the environment locked.

    Raises Conflict `policy_recently_weakened` for whoever weakened the policy in the last 24 hours, and
    `no_eligible_reviewer` when fewer people could decide than the policy wants. Where it wants nobody the caller
    goes on with `approve_by_policy`.
    """
    environment = scope.here
    now = clock.now()
    policy = policy_of(environment)
    weak = weakeners(environment, now)
    if actor.id in weak:
        raise Conflict("You weakened this environment's policy in the last 24 hours.", code="policy_recently_weakened")
    required = int(policy["required_approvals"])
    if required:
        able = people_with(Permission.OPERATE_ENVIRONMENT, scope).exclude(pk__in=weak)
        if policy["prevent_self_approval"] and actor.id is not None:
            able = able.exclude(pk=actor.id)
        count = able.count()
        if count < required:
            raise Conflict(
                f"The policy wants {required} approvals, and {count} people could decide (the requester and those who "
                "weakened the policy lately aside).",
                code="no_eligible_reviewer",
            )
    approval_id = new_id()
    approval = Approval(
        id=approval_id,
        environment=environment,
        action=action,
        requested_by=actor.id,
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
        shown_digest=digest_of(
            approval_id=approval_id,
            spec_hash=spec_hash,
            config_hash=config_hash,
            capabilities=capabilities,
            strategy=strategy,
            policy=policy,
            targets=target_agent_ids,
            base=base,
        ),
        created_at=now,
    )
    if action == Action.DEPLOY.value:
        approval.deployment_id = subject_id
    else:
        approval.replay_id = subject_id
    approval.save(force_insert=True)
    note(
        approval,
        from_="",
        to=ApprovalStatus.PENDING.value,
        actor=actor.ref,
        trigger="requested",
        reason=reason,
    )
    return approval
