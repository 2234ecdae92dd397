"""Management of agents by people: rename, label, revoke, delete."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping

from django.db import IntegrityError, models, transaction

from apps.access.principals import Principal
from apps.agents.models import Agent
from apps.agents.registry import desired_source
from apps.agents.services.directives import announce
from apps.agents.services.keys import end_keys
from apps.audit import services as audit
from apps.core import clock
from apps.core.db import require_locked
from apps.core.errors import Conflict
from apps.runtime.faults import fault_point
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environment

Guard = Callable[[Agent], None]
Relabel = Callable[[Mapping[str, str]], Mapping[str, str]]


def _locked(scope: Scope, agent_id: uuid.UUID) -> Agent:
    return require_locked(
        Agent.objects.select_related("environment__project__organization"),
        pk=agent_id,
        environment=scope.require_environment(),
    )


def update_agent(
    *,
    actor: Principal,
    scope: Scope,
    agent_id: uuid.UUID,
    name: str | None = None,
    relabel: Relabel | None = None,
    guard: Guard | None = None,
) -> Agent:
    """Rename an agent or change its labels; None leaves a field unchanged. Existing deployments keep their targets.

    `relabel` gets the current labels and returns the new ones (it may refuse). `guard` gets the locked row and may
    refuse (If-Match). Raises NotFound and Conflict `name_taken`.
    """
    with transaction.atomic():
        lock_environment(scope.require_environment().pk)
        agent = _locked(scope, agent_id)
        if guard is not None:
            guard(agent)
        changes: dict[str, object] = {}
        if name is not None and name != agent.name:
            changes["name"] = name
        if relabel is not None and (labels := dict(relabel(agent.labels))) != agent.labels:
            changes["labels"] = labels
        if not changes:
            return agent
        before = {key: getattr(agent, key) for key in changes}
        try:
            with transaction.atomic():
                Agent.objects.filter(pk=agent.pk).update(**changes, rev=models.F("rev") + 1, updated_at=clock.now())
        except IntegrityError:
            raise Conflict(f"An agent named '{name}' already exists.", code="name_taken") from None
        audit.record_in(
            scope,
            action="agent.updated",
            actor=actor.ref,
            target=f"agent:{agent.pk}",
            details={"before": before, "after": changes},
        )
        return _locked(scope, agent_id)


def _settle(actor: Principal, agent: Agent, force: bool) -> bool:
    """End what is in flight on `agent` through the app that deploys. Raises Conflict `agent_in_flight` unless forced or
    idle."""
    source = desired_source()
    blockers = source.removal_blockers(agent)
    if blockers and not force:
        raise Conflict(
            "A deployment is in flight on this agent. Repeat with force=true to fail it there.",
            code="agent_in_flight",
            extra={"blockers": blockers},
        )
    source.settle_targets_of_agent(actor=actor.ref, agent=agent)
    return bool(blockers)


def remove_agent(
    *, actor: Principal, scope: Scope, agent_id: uuid.UUID, force: bool = False, guard: Guard | None = None
) -> None:
    """Delete an agent: its keys are revoked, its name is free, deployments keep its id and name.

    Raises NotFound, and Conflict `agent_in_flight` (with `blockers`) unless `force`.
    """
    with transaction.atomic():
        lock_environment(scope.require_environment().pk)
        agent = _locked(scope, agent_id)
        if guard is not None:
            guard(agent)
        forced = _settle(actor, agent, force)
        announce([agent.pk])
        Agent.objects.filter(pk=agent.pk).delete()
        audit.record_in(
            scope,
            action="agent.removed",
            actor=actor.ref,
            target=f"agent:{agent_id}",
            details={"name": agent.name, "forced": forced},
        )
        fault_point("agents.remove.before_commit")
    fault_point("agents.remove.after_commit")


def revoke_agent_key(*, actor: Principal, scope: Scope, agent_id: uuid.UUID, force: bool = False) -> Agent:
    """Revoke every key of an agent for good: the host must enroll again. A repetition changes nothing.

    Raises NotFound, and Conflict `agent_in_flight` (with `blockers`) unless `force`.
    """
    with transaction.atomic():
        lock_environment(scope.require_environment().pk)
        agent = _locked(scope, agent_id)
        if agent.revoked_at is not None:
            return agent
        forced = _settle(actor, agent, force)
        now = clock.now()
        end_keys(agent, now)
        Agent.objects.filter(pk=agent.pk).update(revoked_at=now, updated_at=now, rev=models.F("rev") + 1)
        announce([agent.pk])
        audit.record_in(
            scope,
            action="agent.key_revoked",
            actor=actor.ref,
            target=f"agent:{agent.pk}",
            details={"name": agent.name, "forced": forced},
        )
        return _locked(scope, agent_id)
