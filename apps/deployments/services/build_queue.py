"""Build queue: one deployment at a time per target; others wait in `approved`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from apps.core import clock
from apps.deployments.models import HOLDS_TARGETS, Deployment, DeploymentStatus, Target
from apps.deployments.rules import Waiting, startable
from apps.jobs import services as jobs
from apps.runtime.faults import fault_point
from apps.tenancy.models import Environment

BUILD_JOB = "deploy_bundle_build"


def targets_of(deployment_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, set[uuid.UUID]]:
    """The agents of each deployment, in one query."""
    agents: dict[uuid.UUID, set[uuid.UUID]] = {}
    rows = Target.objects.filter(deployment_id__in=list(deployment_ids)).values_list("deployment_id", "agent_id")
    for deployment_id, agent_id in rows:
        agents.setdefault(deployment_id, set()).add(agent_id)
    return agents


def busy_agents(environment: Environment, *, exclude: uuid.UUID | None = None) -> dict[uuid.UUID, uuid.UUID]:
    """{agent: the deployment that is building, deploying or rolling back on it}; `exclude` is left out."""
    rows = Target.objects.filter(deployment__environment=environment, deployment__status__in=HOLDS_TARGETS)
    if exclude is not None:
        rows = rows.exclude(deployment_id=exclude)
    return dict(rows.values_list("agent_id", "deployment_id"))


def queue_builds(environment: Environment) -> list[uuid.UUID]:
    """Queue the build of every approved deployment whose targets are all free (`rules.startable`), oldest approval first.

    Call it in the transaction that approves a deployment or frees targets, after its transitions. Returns the ids of the
    queued deployments.
    """
    waiting: list[Deployment] = list(
        Deployment.objects.filter(environment=environment, status=DeploymentStatus.APPROVED).order_by(
            "approved_at", "pk"
        )
    )
    if not waiting:
        return []
    agents = targets_of(d.pk for d in waiting)
    rows = [Waiting(d.pk, agents.get(d.pk, set()), d.build_queued_at is not None) for d in waiting]
    queued = startable(rows, busy_agents(environment))
    for deployment_id in queued:
        Deployment.objects.filter(pk=deployment_id, status=DeploymentStatus.APPROVED).update(
            build_queued_at=clock.now()
        )
        jobs.enqueue(
            type=BUILD_JOB,
            organization_id=environment.organization_id,
            environment_id=environment.pk,
            subject_id=deployment_id,
        )
        fault_point("deployments.build.enqueued")
    return queued
