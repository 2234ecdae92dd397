"""Requests for deployments."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from django.db import transaction

from apps.access.principals import Principal
from apps.agents import selectors as agents
from apps.agents.models import Agent
from apps.approvals import services as approvals
from apps.core import clock
from apps.core.errors import Conflict, FieldError, TooManyRequests, Unprocessable
from apps.core.ids import new_id
from apps.deployments.models import (
    DEFAULT_TIMEOUT_SECONDS,
    IN_FLIGHT,
    ConfigBundle,
    Deployment,
    DeploymentStatus,
    Target,
)
from apps.deployments.rollout import FULL, Phase, assign_phases
from apps.deployments.selectors import base_of
from apps.deployments.services.transitions import locked_deployment, record_event
from apps.pipelines import selectors as pipelines
from apps.runtime.faults import fault_point
from apps.tenancy.models import Environment
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environment, scope_of

CAP_RETRY_SECONDS = 30
LONGEST_TIMEOUT_SECONDS = 86_400
LONGEST_BAKE_SECONDS = 86_400
ALL_AT_ONCE, PHASED = "all_at_once", "phased"


@dataclass(frozen=True, slots=True)
class Selector:
    """Selector of agents: exactly one of `everyone`, `agent_ids`, `labels`."""

    everyone: bool = False
    agent_ids: tuple[uuid.UUID, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        if self.everyone:
            return {"all": True}
        if self.labels:
            return {"labels": dict(self.labels)}
        return {"agent_ids": [str(i) for i in self.agent_ids]}


@dataclass(frozen=True, slots=True)
class Strategy:
    """Rollout strategy: `all_at_once`, or `phased` over `phases` of {percent, bake_seconds}."""

    type: str = ALL_AT_ONCE
    max_failures: int = 0
    auto_rollback: bool = False
    phases: tuple[Phase, ...] = ()

    def as_dict(self) -> dict[str, object]:
        plain: dict[str, object] = {
            "type": self.type,
            "max_failures": self.max_failures,
            "auto_rollback": self.auto_rollback,
        }
        if self.type == PHASED:
            plain["phases"] = [{"percent": p.percent, "bake_seconds": p.bake_seconds} for p in self.phases]
        return plain

    def problems(self) -> list[FieldError]:
        """Validation errors with pointers into the body; empty when the strategy is valid."""
        found: list[FieldError] = []
        if self.type not in (ALL_AT_ONCE, PHASED):
            found.append(FieldError("/strategy/type", "unknown_strategy", f"{ALL_AT_ONCE} or {PHASED} is expected."))
        if (self.type == PHASED) != bool(self.phases):
            found.append(
                FieldError("/strategy/phases", "phases", "Phases are required for phased, and not allowed otherwise.")
            )
        if self.max_failures < 0:
            found.append(FieldError("/strategy/max_failures", "out_of_range", "Must not be below 0."))
        before = 0
        for number, phase in enumerate(self.phases):
            here = f"/strategy/phases/{number}"
            if not 1 <= phase.percent <= FULL:
                found.append(FieldError(f"{here}/percent", "out_of_range", "Must be from 1 to 100."))
            elif phase.percent <= before:
                detail = f"Percentages are cumulative: {phase.percent} must be greater than the previous {before}."
                found.append(FieldError(f"{here}/percent", "not_growing", detail))
            if not 0 <= phase.bake_seconds <= LONGEST_BAKE_SECONDS:
                found.append(
                    FieldError(f"{here}/bake_seconds", "out_of_range", f"Must be from 0 to {LONGEST_BAKE_SECONDS}.")
                )
            before = max(before, phase.percent)
        if self.phases and self.phases[-1].percent != FULL:
            last = f"/strategy/phases/{len(self.phases) - 1}/percent"
            found.append(FieldError(last, "not_everybody", "The last phase must be 100."))
        return found


def _resolve(scope: Scope, targets: Selector) -> list[Agent]:
    """The agents that `targets` selects, oldest first, by the labels that users set. Raises Unprocessable."""
    here = agents.in_environment(scope).order_by("pk")
    if targets.everyone:
        found = list(here)
    elif targets.labels:
        found = agents.by_labels(scope, targets.labels)
    else:
        found = list(here.filter(pk__in=targets.agent_ids))
        known = {agent.pk for agent in found}
        unknown = [
            FieldError(f"/targets/agent_ids/{i}", "unknown_agent", "Not an agent of this environment.")
            for i, agent_id in enumerate(targets.agent_ids)
            if agent_id not in known
        ]
        if unknown:
            raise Unprocessable(
                "An agent does not exist in this environment.", code="no_matching_agent", errors=unknown
            )
    if not found:
        raise Unprocessable.about("/targets", "no_matching_agent", "No agent matches.")
    return found


def _refuse_over_cap(environment: Environment) -> None:
    used = Deployment.objects.filter(environment=environment).in_flight().count()
    if used >= environment.max_in_flight_deployments:
        raise TooManyRequests(
            f"{used} deployments are in flight in this environment; the limit is {environment.max_in_flight_deployments}.",
            retry_after=CAP_RETRY_SECONDS,
            code="deployment_cap",
            extra={"in_flight": used, "limit": environment.max_in_flight_deployments},
        )


def _refuse_same_bundle(environment: Environment, bundle: ConfigBundle, found: Sequence[Agent]) -> None:
    wanted = {agent.pk for agent in found}
    in_flight = Target.objects.filter(
        deployment__environment=environment, deployment__bundle_id=bundle.pk, deployment__status__in=IN_FLIGHT
    )
    rows = in_flight.order_by("pk").values_list("deployment_id", "agent_id")
    clash = next((deployment_id for deployment_id, agent_id in rows if agent_id in wanted), None)
    if clash is not None:
        raise Conflict(
            "The same bundle is in flight on one of these agents.",
            code="bundle_in_flight",
            extra={"deployment_id": str(clash)},
        )


def request_deployment(
    *,
    actor: Principal,
    scope: Scope,
    bundle_id: uuid.UUID,
    targets: Selector,
    strategy: Strategy | None = None,
    timeout_seconds: int = DEFAULT_TIMEOUT_SECONDS,
    reason: str = "",
) -> Deployment:
    """Request a deployment of `bundle_id` to the agents that `targets` selects now.

    One transaction under the environment's lock, so that the cap is exact. The agents and their phases are fixed now. If
    the policy requires no approval, the deployment is approved and its build queued on return. Raises Unprocessable
    `unknown_bundle`, `invalid_strategy`, `no_matching_agent`; Conflict `bundle_in_flight`, `no_eligible_reviewer`,
    `policy_recently_weakened`; TooManyRequests `deployment_cap`.
    """
    wanted = strategy or Strategy()
    problems = wanted.problems()
    if problems:
        raise Unprocessable("The strategy is not valid.", code="invalid_strategy", errors=problems)
    with transaction.atomic():
        environment = lock_environment(scope.require_environment().pk)
        here = scope_of(environment)
        bundle = ConfigBundle.objects.filter(pk=bundle_id, environment=environment).first()
        if bundle is None:
            raise Unprocessable.about("/bundle_id", "unknown_bundle", "The bundle does not exist in this environment.")
        found = _resolve(here, targets)
        _refuse_same_bundle(environment, bundle, found)
        _refuse_over_cap(environment)
        version = pipelines.get_version(here, bundle.version_id)
        now = clock.now()
        deployment_id = new_id()
        agent_ids = [agent.pk for agent in found]
        approval = approvals.request_approval(
            actor=actor,
            scope=here,
            action="deploy",
            subject_id=deployment_id,
            spec_hash=bundle.spec_hash,
            config_hash=bundle.config_hash,
            capabilities=list(version.capabilities),
            strategy=wanted.as_dict(),
            target_agent_ids=[str(agent_id) for agent_id in agent_ids],
            base=base_of(environment.pk, agent_ids),
            reason=reason,
        )
        if bundle.used_at is None:
            ConfigBundle.objects.filter(pk=bundle.pk, used_at__isnull=True).update(used_at=now)
        deployment = Deployment(
            id=deployment_id,
            environment=environment,
            bundle_id=bundle.pk,
            version_id=bundle.version_id,
            version_number=bundle.version_number,
            pipeline_name=bundle.pipeline_name,
            spec_hash=bundle.spec_hash,
            config_hash=bundle.config_hash,
            capabilities=list(version.capabilities),
            approval_id=approval.pk,
            requested_by=actor.acts_for,
            requested_by_name=actor.name[:200],
            reason=reason,
            target_selector=targets.as_dict(),
            strategy=wanted.as_dict(),
            timeout_seconds=timeout_seconds,
            created_at=now,
            updated_at=now,
        )
        deployment.save(force_insert=True)
        phase_of = assign_phases(agent_ids, deployment.phases)
        Target.objects.bulk_create(
            Target(
                deployment=deployment,
                agent_id=agent.pk,
                agent_name=agent.name,
                phase=phase_of[agent.pk],
                created_at=now,
            )
            for agent in found
        )
        record_event(
            deployment,
            from_status="",
            to_status=DeploymentStatus.PENDING_APPROVAL.value,
            actor=actor.ref,
            trigger="requested",
            reason=reason,
        )
        if approval.required_approvals == 0:
            approvals.approve_by_policy(approval=approval)
            deployment = locked_deployment(environment, deployment_id)
        fault_point("deployments.request.before_commit")
    fault_point("deployments.request.after_commit")
    return deployment
