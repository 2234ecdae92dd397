"""Transitions of a deployment: the guarded UPDATE with its event and audit row."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR, ActorRef
from apps.core.db import require_row
from apps.core.errors import NotFound
from apps.core.fsm import Move, advance
from apps.deployments.models import Deployment, DeploymentEvent, DeploymentStatus, PhaseEvent, PhaseMark
from apps.tenancy.models import Environment
from apps.tenancy.selectors import lock_environment, scope_of

REASON_LENGTH = 1000


def format_status_reason(code: str, detail: str) -> str:
    """Format a `status_reason`: the stable code, a colon and a sentence."""
    return (f"{code}: {detail}" if detail else code)[:REASON_LENGTH]


def locked_deployment(environment: Environment, deployment_id: uuid.UUID) -> Deployment:
    """Read the deployment under its locked environment. Raises NotFound.

    The environment's lock covers all rows below it: every writer takes it first.
    """
    found = require_row(Deployment, pk=deployment_id, environment=environment)
    found.environment = environment
    return found


def lock_deployment(environment_id: uuid.UUID, deployment_id: uuid.UUID) -> Deployment | None:
    """Lock an environment and read its deployment, for what runs in the background; None when either is deleted."""
    try:
        return locked_deployment(lock_environment(environment_id), deployment_id)
    except NotFound:
        return None


def record_event(
    deployment: Deployment, *, from_status: str, to_status: str, actor: ActorRef, trigger: str, reason: str = ""
) -> None:
    """Record the event and the audit row of a transition, in the caller's transaction."""
    environment = deployment.environment
    scope = scope_of(environment)
    DeploymentEvent.objects.create(
        deployment=deployment,
        from_status=from_status,
        to_status=to_status,
        actor=str(actor)[:200],
        actor_name=actor.name[:200],
        trigger=trigger,
        reason=reason[:2000],
    )
    audit.record_in(
        scope,
        action=f"deployment.{to_status}" if from_status else "deployment.requested",
        actor=actor,
        target=f"deployment:{deployment.pk}",
        details={"from": from_status, "to": to_status, "trigger": trigger, "reason": reason},
    )


def move(
    deployment: Deployment, transition: str, *, actor: ActorRef, trigger: str, reason: str = "", **columns: Any
) -> Move:
    """Make a transition with its event and audit row, in the caller's transaction.

    `reason` is a sentence for users; `trigger` is the stable code of the cause. Leaving `deploying` ends a bake. Raises
    StateConflict.
    """
    if deployment.status == DeploymentStatus.DEPLOYING.value:
        columns = {"bake_started_at": None, "bake_ends_at": None, **columns}
    made = advance(deployment, transition, updated_at=clock.now(), **columns)
    record_event(deployment, from_status=made.from_, to_status=made.to, actor=actor, trigger=trigger, reason=reason)
    return made


def end(deployment: Deployment, transition: str, *, actor: ActorRef, code: str, detail: str, **columns: Any) -> None:
    """Make a transition that ends the deployment; its `status_reason` is `code` and `detail`. Raises StateConflict."""
    move(
        deployment,
        transition,
        actor=actor,
        trigger=code,
        reason=detail,
        status_reason=format_status_reason(code, detail),
        settled_at=clock.now(),
        **columns,
    )


def record_phase(deployment: Deployment, phase: int, mark: PhaseMark, *, at: dt.datetime, detail: str) -> None:
    """Record the event and the audit row of a phase, in the caller's transaction."""
    scope = scope_of(deployment.environment)
    PhaseEvent.objects.create(deployment=deployment, phase=phase, mark=mark, detail=detail[:500], created_at=at)
    audit.record_in(
        scope,
        action=f"deployment.phase_{mark.value}",
        actor=SYSTEM_ACTOR,
        target=f"deployment:{deployment.pk}",
        details={"phase": phase, "percent": deployment.phases[phase].percent, "detail": detail},
    )
