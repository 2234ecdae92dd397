"""What agents say. Each report is one guarded update of one target; the last one moves the deployment."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from apps.agents import services as agents
from apps.agents.models import Agent
from apps.agents.registry import AgentReport, Desired
from apps.core import clock
from apps.core.errors import Conflict, NotFound
from apps.deployments.desired import desired_of
from apps.deployments.models import Confirmation, Deployment, Target, TargetStatus
from apps.deployments.selectors import walk
from apps.deployments.services.aftermath import after_moves
from apps.deployments.services.judging import judge
from apps.deployments.services.moves import locked_deployment
from apps.runtime.faults import fault_point
from apps.tenancy.selectors import lock_environment

T = TargetStatus

PROGRESS = {T.ASSIGNED.value: 0, T.FETCHED.value: 1, T.VERIFIED.value: 2}
"""How far an unsettled target is; a report of less than it said before changes nothing."""


@dataclass(frozen=True, slots=True)
class _Case:
    """One report with all that is needed to judge it."""

    agent: Agent
    deployment: Deployment
    target: Target
    wanted: Desired
    report: AgentReport

    @property
    def taking_back(self) -> bool:
        """Does the agent leave this deployment, rather than reach it?"""
        return self.wanted.deployment_id != self.deployment.pk

    @property
    def names_what_is_wanted(self) -> bool:
        return (self.report.bundle_sha256, self.report.sequence) == (self.wanted.bundle_sha256, self.wanted.sequence)


def take_report(*, agent: Agent, deployment_id: uuid.UUID, report: AgentReport) -> None:
    """Take a report of `agent` on `deployment_id`, in one transaction.

    A repeat, or one that arrives after a later one, changes nothing. Raises NotFound when `agent` is no target of it;
    Conflict `not_wanted` when this is not (or no longer) what the agent is told to do, `already_settled` when it
    takes back what it had confirmed (in a bake that is a failure).
    """
    with transaction.atomic():
        environment = lock_environment(agent.environment_id)
        deployment = locked_deployment(environment, deployment_id)
        target = Target.objects.filter(deployment=deployment, agent_id=agent.pk, agent_gone_at__isnull=True).first()
        if target is None:
            raise NotFound()
        case = _Case(agent, deployment, target, desired_of(walk(agent.pk)), report)
        if _repeats_failure(case):
            return
        if case.wanted.for_deployment_id != deployment.pk:
            raise Conflict("This is no longer wanted of this agent.", code="not_wanted")
        if _settles(case):
            judge(deployment)
            after_moves(deployment)
        fault_point("deployments.report.before_commit")
    fault_point("deployments.report.after_commit")


def _repeats_failure(case: _Case) -> bool:
    return (
        case.report.status == "failed"
        and case.target.status == T.FAILED.value
        and case.target.settled_at is not None
        and case.report.bundle_sha256 in (None, case.target.report.get("bundle_sha256"))
    )


def _settles(case: _Case) -> bool:
    """Apply the report to the target. True when the deployment is to be judged anew."""
    match case.report.status:
        case "fetched" | "verified":
            _require_wanted(case)
            _note_progress(case)
            return False
        case "activated" | "rolled_back":
            _require_wanted(case)
            if case.report.status == "rolled_back" and case.wanted.directive != "rollback":
                raise Conflict("It was not told to go back.", code="not_wanted")
            return _confirm(case)
        case "stopped":
            if case.wanted.directive != "stop":
                raise Conflict("It was not told to stop.", code="not_wanted")
            return _confirm(case)
        case _:
            return _fail(case)


def _require_wanted(case: _Case) -> None:
    if case.wanted.directive == "stop" or not case.names_what_is_wanted:
        raise Conflict("Another bundle is wanted of this agent.", code="not_wanted")


def _write(case: _Case, **columns: Any) -> None:
    """The guarded update of the target: only if it is still what it was read as."""
    said = case.report
    report: dict[str, object] = {**case.target.report, "status": said.status, "reason": said.reason}
    report["bundle_sha256"] = said.bundle_sha256
    report["sequence"] = said.sequence
    if said.tuning:
        report["tuning"] = dict(said.tuning)
    if said.log_tail:
        report["log_tail"] = said.log_tail
    changed = Target.objects.filter(pk=case.target.pk, status=case.target.status).update(
        report=report, updated_at=clock.now(), **columns
    )
    if changed != 1:
        raise Conflict("Another report came first.", code="not_wanted")


def _note_progress(case: _Case) -> None:
    if case.taking_back or case.target.status not in PROGRESS:
        return
    if PROGRESS[case.report.status] > PROGRESS[case.target.status]:
        handed = {} if case.target.handed_out_at else {"handed_out_at": clock.now()}
        _write(case, status=case.report.status, **handed)


def _confirm(case: _Case) -> bool:
    wanted, now = case.wanted, clock.now()
    agents.set_running(
        case.agent,
        deployment_id=wanted.deployment_id,
        bundle_sha256=wanted.bundle_sha256,
        sequence=wanted.sequence,
    )
    Confirmation.objects.update_or_create(
        agent_id=case.agent.pk,
        defaults={
            "environment": case.deployment.environment,
            "deployment_id": wanted.deployment_id,
            "bundle_sha256": wanted.bundle_sha256 or "",
            "sequence": wanted.sequence,
            "confirmed_at": now,
        },
    )
    if not case.taking_back:
        reached = T.ACTIVATED.value
    elif case.target.rollback_at is not None:
        reached = T.ROLLED_BACK.value
    else:
        return False
    if case.target.status == reached and case.target.settled_at is not None:
        return False
    _write(case, status=reached, settled_at=now)
    return True


def _fail(case: _Case) -> bool:
    if case.report.bundle_sha256 is not None and not case.names_what_is_wanted:
        raise Conflict("Another bundle is wanted of this agent.", code="not_wanted")
    target = case.target
    if case.taking_back and target.rollback_at is None:
        # it left a failed deployment for good: whether the older one still starts there is for its heartbeats to say
        return False
    in_bake = target.status == T.ACTIVATED.value and case.deployment.bake_started_at is not None
    if (
        target.settled_at is not None
        and target.status != T.UNREACHABLE.value
        and not (in_bake and not case.taking_back)
    ):
        raise Conflict("This target is settled already.", code="already_settled")
    _write(case, status=T.FAILED.value, settled_at=clock.now())
    if not case.taking_back:
        agents.announce([case.agent.pk])
    return True
