"""Jobs over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from django.db.models import QuerySet
from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.api import ScopedView
from apps.access.roles import Permission
from apps.core.api import StrictSerializer, keyset_page, rfc3339, status_filter
from apps.core.errors import NotFound
from apps.jobs.models import Job, JobStatus
from apps.jobs.registry import handler_types
from apps.jobs.services import retry_dead_letter
from apps.tenancy.scope import Scope


def job_document(job: Job) -> dict[str, object]:
    """A job as the API shows it."""
    return {
        "id": str(job.pk),
        "type": job.type,
        "status": job.status,
        "subject_id": str(job.subject_id),
        "environment_id": str(job.environment_id) if job.environment_id else None,
        "attempts": job.attempts,
        "max_attempts": job.max_attempts,
        "progress": job.progress,
        "error": {"class": job.error_class, "message": job.error} if job.error_class else None,
        "note": job.note,
        "scheduled_at": rfc3339(job.run_at),
        "started_at": rfc3339(job.started_at),
        "finished_at": rfc3339(job.finished_at),
        "created_at": rfc3339(job.created_at),
    }


class EmptyInput(StrictSerializer):
    """Empty or `{}`."""


_FILTERS = {"status": status_filter(JobStatus.values)}


def _page(request: Request, rows: QuerySet[Any]) -> Response:
    return keyset_page(
        request, rows, job_document, filters={**_FILTERS, "type": status_filter(handler_types(), "type")}
    )


class OrganizationJobsView(ScopedView):
    """GET: every job of the organization."""

    level: ClassVar[str] = "organization"
    permissions: ClassVar[Mapping[str, Permission]] = {"GET": Permission.VIEW_ORG}

    def get(self, request: Request, org_id: uuid.UUID) -> Response:
        return _page(request, Job.objects.filter(organization_id=org_id))


class JobsView(ScopedView):
    """GET: the jobs of the environment."""

    def get(self, request: Request, **ids: uuid.UUID) -> Response:
        return _page(request, Job.objects.filter(environment=self.environment))


def job_of(scope: Scope, job_id: uuid.UUID) -> Job:
    """The job of the environment. NotFound when it has none like it."""
    row: Job | None = Job.objects.filter(pk=job_id, environment=scope.here).first()
    if row is None:
        raise NotFound()
    return row


class JobView(ScopedView):
    """One job."""

    finds = job_of

    def get(self, request: Request, job_id: uuid.UUID, **ids: uuid.UUID) -> Response:
        return Response(job_document(job_of(self.scope, job_id)))


class JobRetryView(JobView):
    """POST: queue a dead job again."""

    permissions: ClassVar[Mapping[str, Permission]] = {
        "GET": Permission.VIEW_ENVIRONMENT,
        "POST": Permission.OPERATE_ENVIRONMENT,
    }
    http_method_names = ["post", "options"]

    def post(self, request: Request, job_id: uuid.UUID, **ids: uuid.UUID) -> Response:
        job = job_of(self.scope, job_id)
        self.read(EmptyInput)
        return Response(job_document(retry_dead_letter(actor=self.principal, job=job)))
