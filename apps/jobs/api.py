"""API of jobs."""

from __future__ import annotations

from typing import TypedDict

from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.roles import Permission
from apps.api.base import ScopedView
from apps.api.documents import document
from apps.api.operations import operation
from apps.api.parameters import choice_filter, status_filter
from apps.api.serializers import EmptyInput
from apps.jobs.models import Job, JobStatus
from apps.jobs.registry import handler_types
from apps.jobs.services import retry_dead_letter

FILTERS = {"status": status_filter(JobStatus.values), "type": choice_filter(handler_types, "type")}

JobError = TypedDict("JobError", {"class": str, "message": str})
"""The error of a job's last attempt."""


class JobDocument(TypedDict):
    """A job."""

    id: str
    type: str
    status: str
    subject_id: str
    environment_id: str | None
    attempts: int
    max_attempts: int
    progress: object
    error: JobError | None
    note: str
    scheduled_at: str
    started_at: str | None
    finished_at: str | None
    created_at: str


def job_document(job: Job) -> JobDocument:
    """Return the API representation of a job."""
    error = {"class": job.error_class, "message": job.error} if job.error_class else None
    return document(JobDocument, job, error=error, scheduled_at=job.run_at)


class OrganizationJobsView(ScopedView):
    """Jobs of an organization."""

    level = "organization"

    @operation(Permission.VIEW_ORG, lists=JobDocument, filters=FILTERS)
    def get(self, request: Request) -> Response:
        """List every job of the organization."""
        return self.page(Job.objects.filter(organization_id=self.scope.organization_id), job_document)


class JobsView(ScopedView):
    """Jobs of an environment."""

    @operation(Permission.VIEW_ENVIRONMENT, lists=JobDocument, filters=FILTERS)
    def get(self, request: Request) -> Response:
        """List the jobs of the environment."""
        return self.page(Job.objects.filter(environment=self.environment), job_document)


class JobView(ScopedView):
    """A job."""

    queryset = Job.objects.all()
    found: Job

    @operation(Permission.VIEW_ENVIRONMENT, answer=JobDocument)
    def get(self, request: Request) -> Response:
        """Read a job."""
        return Response(job_document(self.found))


class JobRetryView(ScopedView):
    """Retry of a job."""

    queryset = Job.objects.all()
    found: Job

    @operation(Permission.OPERATE_ENVIRONMENT, body=EmptyInput, answer=JobDocument)
    def post(self, request: Request) -> Response:
        """Queue a dead job again."""
        return Response(job_document(retry_dead_letter(actor=self.principal, job=self.found)))
