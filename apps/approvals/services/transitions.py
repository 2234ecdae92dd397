"""Transitions of approvals: the guarded update, its event and its audit event."""

from __future__ import annotations

import uuid
from typing import Any

from apps.approvals.models import Approval, ApprovalEvent
from apps.audit import services as audit
from apps.core.actors import ActorRef
from apps.core.db import require_locked
from apps.core.errors import NotFound
from apps.core.fsm import advance
from apps.tenancy.models import Environment
from apps.tenancy.selectors import lock_environment, scope_of


def locked_approval(environment: Environment, approval_id: uuid.UUID) -> Approval:
    """Lock and return the approval; the environment is locked already. Raises NotFound if it belongs to another
    environment."""
    approval = require_locked(Approval, pk=approval_id, environment=environment)
    approval.environment = environment
    return approval


def lock_approval(environment_id: uuid.UUID, approval_id: uuid.UUID) -> Approval | None:
    """Lock an environment and its approval, for what runs in the background; None when either is deleted."""
    try:
        return locked_approval(lock_environment(environment_id), approval_id)
    except NotFound:
        return None


def note(approval: Approval, *, from_: str, to: str, actor: ActorRef, trigger: str, reason: str = "") -> None:
    """Write the event and the audit event of a transition."""
    ApprovalEvent.objects.create(
        approval=approval,
        from_status=from_,
        to_status=to,
        actor=str(actor)[:200],
        actor_name=actor.name[:200],
        trigger=trigger,
        reason=reason[:2000],
    )
    scope = scope_of(approval.environment)
    audit.record_in(
        scope,
        action=f"approval.{to if from_ else 'requested'}",
        actor=actor,
        target=f"approval:{approval.pk}",
        details={"from": from_, "to": to, "trigger": trigger, "reason": reason, "subject": approval.subject},
    )


def move(
    approval: Approval, transition: str, *, actor: ActorRef, trigger: str, reason: str = "", **columns: Any
) -> None:
    """Make a transition with its event and audit event. Raises StateConflict."""
    made = advance(approval, transition, **columns)
    note(approval, from_=made.from_, to=made.to, actor=actor, trigger=trigger, reason=reason)
