"""What agents say. Each report is one guarded update of one target; the last one moves the deployment."""

from __future__ import annotations

import uuid

from django.db import transaction

from apps.agents import services as agents
from apps.agents.models import Agent
from apps.agents.registry import AgentReport, Desired
from apps.core import clock
from apps.core.errors import Conflict, NotFound
from apps.deployments.desired import desired_of
from apps.deployments.models import Confirmation, Deployment, Target, TargetStatus
from apps.deployments.rules import Meaning, ReportedOn, meaning_of
from apps.deployments.selectors import walk
from apps.deployments.services.aftermath import after_moves
from apps.deployments.services.judging import judge
from apps.deployments.services.moves import locked_deployment
from apps.runtime.faults import fault_point
from apps.tenancy.models import Environment
from apps.tenancy.selectors import lock_environment

T = TargetStatus


def take_report(*, agent: Agent, deployment_id: uuid.UUID, report: AgentReport) -> None:
    """Take a report of `agent` on `deployment_id`, in one transaction; what it means is `rules.meaning_of`.

    Raises NotFound when `agent` is no target of it, and the Conflicts of `meaning_of`.
    """
    with transaction.atomic():
        environment = lock_environment(agent.environment_id)
        deployment = locked_deployment(environment, deployment_id)
        target = Target.objects.filter(deployment=deployment, agent_id=agent.pk, agent_gone_at__isnull=True).first()
        if target is None:
            raise NotFound()
        wanted = desired_of(walk(agent.pk))
        meaning = meaning_of(report, _reported_on(deployment, target), wanted)
        if meaning.confirms:
            _confirm(environment, agent, wanted)
        if meaning.to is not None:
            _write(target, report, meaning)
        if meaning.settles:
            if meaning.to == T.FAILED and wanted.deployment_id == deployment.pk:
                agents.announce([agent.pk])
            judge(deployment)
            after_moves(deployment)
        fault_point("deployments.report.before_commit")
    fault_point("deployments.report.after_commit")


def _reported_on(deployment: Deployment, target: Target) -> ReportedOn:
    return ReportedOn(
        deployment_id=deployment.pk,
        status=target.status,
        settled=target.settled_at is not None,
        asked_back=target.rollback_at is not None,
        in_bake=deployment.bake_started_at is not None,
        failed_bundle=target.report.get("bundle_sha256"),
    )


def _write(target: Target, said: AgentReport, meaning: Meaning) -> None:
    """The guarded update of the target: only if it is still what it was read as."""
    now = clock.now()
    report: dict[str, object] = {**target.report, "status": said.status, "reason": said.reason}
    report["bundle_sha256"] = said.bundle_sha256
    report["sequence"] = said.sequence
    if said.status == "failed":
        # kept when it goes back: somebody will ask why
        report["failure"] = said.reason or "failed"
    if said.tuning:
        report["tuning"] = dict(said.tuning)
    if said.log_tail:
        report["log_tail"] = said.log_tail
    columns: dict[str, object] = {"status": meaning.to}
    if meaning.settles:
        columns["settled_at"] = now
    elif target.handed_out_at is None:
        columns["handed_out_at"] = now
    changed = Target.objects.filter(pk=target.pk, status=target.status).update(report=report, updated_at=now, **columns)
    if changed != 1:
        raise Conflict("Another report came first.", code="not_wanted")


def _confirm(environment: Environment, agent: Agent, wanted: Desired) -> None:
    """The agent runs what is wanted of it, or has stopped."""
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
