"""Reports of agents. Each is one guarded update of a target; the last one completes the deployment."""

from __future__ import annotations

import uuid

from django.db import transaction

from apps.agents import services as agents
from apps.agents.models import Agent
from apps.agents.registry import AgentReport, Desired
from apps.core import clock
from apps.core.db import require_row
from apps.core.errors import Conflict
from apps.deployments.desired import desired_of
from apps.deployments.models import Confirmation, Deployment, Target, TargetStatus
from apps.deployments.rules import ReportEffect, TargetState, effect_of
from apps.deployments.selectors import assignment_history
from apps.deployments.services.progress import apply_target_progress
from apps.deployments.services.reconcile import notify_base_changed, reconcile_after_transition
from apps.deployments.services.transitions import locked_deployment
from apps.runtime.faults import fault_point
from apps.tenancy.models import Environment
from apps.tenancy.selectors import lock_environment

T = TargetStatus


def record_report(*, agent: Agent, deployment_id: uuid.UUID, report: AgentReport) -> None:
    """Apply a report of `agent` on `deployment_id` in one transaction (`rules.effect_of`).

    Raises NotFound when `agent` is not a target of the deployment, and Conflict as `effect_of`.
    """
    with transaction.atomic():
        environment = lock_environment(agent.environment_id)
        deployment = locked_deployment(environment, deployment_id)
        target = require_row(Target, deployment=deployment, agent_id=agent.pk, agent_gone_at__isnull=True)
        wanted = desired_of(assignment_history(agent.pk))
        effect = effect_of(report, _reported_on(deployment, target), wanted)
        if effect.confirms:
            _confirm(environment, agent, wanted)
            notify_base_changed(environment.pk)
        if effect.to is not None:
            _write(target, report, effect)
        if effect.settles:
            if effect.to == T.FAILED and wanted.deployment_id == deployment.pk:
                agents.announce([agent.pk])
            apply_target_progress(deployment)
            reconcile_after_transition(deployment)
        fault_point("deployments.report.before_commit")
    fault_point("deployments.report.after_commit")


def _reported_on(deployment: Deployment, target: Target) -> TargetState:
    return TargetState(
        deployment_id=deployment.pk,
        status=target.status,
        settled=target.settled_at is not None,
        rollback_requested=target.rollback_at is not None,
        in_bake=deployment.bake_started_at is not None,
        failed_bundle=target.report.get("bundle_sha256"),
    )


def _write(target: Target, reported: AgentReport, effect: ReportEffect) -> None:
    """Update the target if its status is unchanged since it was read. Raises Conflict otherwise."""
    now = clock.now()
    report: dict[str, object] = {**target.report, "status": reported.status, "reason": reported.reason}
    report["bundle_sha256"] = reported.bundle_sha256
    report["sequence"] = reported.sequence
    if reported.status == "failed":
        # kept after a rollback, for diagnosis
        report["failure"] = reported.reason or "failed"
    if reported.tuning:
        report["tuning"] = dict(reported.tuning)
    if reported.log_tail:
        report["log_tail"] = reported.log_tail
    columns: dict[str, object] = {"status": effect.to}
    if effect.settles:
        columns["settled_at"] = now
    elif target.handed_out_at is None:
        columns["handed_out_at"] = now
    changed = Target.objects.filter(pk=target.pk, status=target.status).update(report=report, updated_at=now, **columns)
    if changed != 1:
        raise Conflict("Another report was processed first.", code="not_wanted")


def _confirm(environment: Environment, agent: Agent, wanted: Desired) -> None:
    """Store that the agent confirmed its desired state."""
    agents.set_running(
        agent,
        deployment_id=wanted.deployment_id,
        bundle_sha256=wanted.bundle_sha256,
        sequence=wanted.sequence,
    )
    Confirmation.objects.update_or_create(
        agent_id=agent.pk,
        defaults={
            "environment": environment,
            "deployment_id": wanted.deployment_id,
            "bundle_sha256": wanted.bundle_sha256 or "",
            "sequence": wanted.sequence,
            "confirmed_at": clock.now(),
        },
    )
