"""Paths of jobs, relative to the API prefix."""

from django.urls import path

from apps.api.paths import ENVIRONMENT, ORGANIZATION
from apps.jobs import api

urlpatterns = [
    path(f"{ORGANIZATION}/jobs", api.OrganizationJobsView.as_view(), name="organization-jobs"),
    path(f"{ENVIRONMENT}/jobs", api.JobsView.as_view(), name="jobs"),
    path(f"{ENVIRONMENT}/jobs/<uuid:job_id>", api.JobView.as_view(), name="job"),
    path(f"{ENVIRONMENT}/jobs/<uuid:job_id>/retry", api.JobRetryView.as_view(), name="job-retry"),
]
