"""Why an approved deployment is blocked: other deployments use its agents, or its build is being retried."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from django.db.models import Count, Q

from apps.deployments.models import HOLDS_TARGETS, Deployment, DeploymentStatus, Target
from apps.deployments.services.build_queue import BUILD_JOB
from apps.deployments.services.transitions import format_status_reason
from apps.jobs.models import Job, JobStatus

NAMED_BLOCKERS = 3
TROUBLES = {
    "StorageUnavailable": "Storage is not available",
    "VaultError": "The organization's signing key can't be opened",
}
"""Error classes as sentences for users. The job has the technical text."""


@dataclass(frozen=True, slots=True)
class Blocker:
    """A deployment that another one waits for, and the number of agents that they share."""

    deployment: Deployment
    shared: int


def blockers_of(deployment: Deployment) -> list[Blocker]:
    """The deployments that block the build of an approved deployment, earliest first.

    These are building for, deploying to or rolling back on one of its agents, or are older approvals that will
    (`rules.startable`).
    """
    if deployment.status != DeploymentStatus.APPROVED.value or deployment.build_queued_at is not None:
        return []
    older = Q(deployment__approved_at__lt=deployment.approved_at) | Q(
        deployment__approved_at=deployment.approved_at, deployment_id__lt=deployment.pk
    )
    ahead = Q(deployment__status__in=HOLDS_TARGETS) | (
        Q(deployment__status=DeploymentStatus.APPROVED) & (Q(deployment__build_queued_at__isnull=False) | older)
    )
    shared = (
        Target.objects.filter(
            ahead,
            deployment__environment_id=deployment.environment_id,
            agent_id__in=Target.objects.filter(deployment=deployment).values("agent_id"),
        )
        .exclude(deployment=deployment)
        .values_list("deployment_id")
        .annotate(n=Count("pk"))
    )
    counts: dict[uuid.UUID, int] = dict(shared)
    return [Blocker(row, counts[row.pk]) for row in Deployment.objects.filter(pk__in=counts).order_by("pk")]


def build_trouble(deployment: Deployment) -> str:
    """Why the last attempt to build it failed, while the build is being retried; empty otherwise."""
    queued = deployment.status == DeploymentStatus.APPROVED.value and deployment.build_queued_at is not None
    if not queued and deployment.status != DeploymentStatus.BUILDING.value:
        return ""
    job = Job.objects.filter(subject_id=deployment.pk, type=BUILD_JOB).order_by("-pk").first()
    if job is None or job.status != JobStatus.RETRYING.value or not job.error:
        return ""
    why = TROUBLES.get(job.error_class) or str(job.error).rstrip(".")
    return f"{why}. The build is retried automatically."


def blocked_reason(deployment: Deployment) -> str:
    """Why an approved deployment is blocked, as a `status_reason`; empty when it is not.

    `target_busy: …` names the deployments that it waits for; `build_retrying: …` states why the last build attempt failed.
    """
    blockers = blockers_of(deployment)
    if blockers:
        return format_status_reason("target_busy", _waits_for(blockers))
    trouble = build_trouble(deployment)
    return format_status_reason("build_retrying", trouble) if trouble else ""


def _waits_for(blockers: Sequence[Blocker]) -> str:
    named = [
        f"{item.deployment.pipeline_name} v{item.deployment.version_number} "
        f"({str(item.deployment.status).replace('_', ' ')}, {item.shared} of the same agents)"
        for item in blockers[:NAMED_BLOCKERS]
    ]
    more = len(blockers) - len(named)
    return f"It waits for {', '.join(named)}{f' and {more} more' if more else ''}."
