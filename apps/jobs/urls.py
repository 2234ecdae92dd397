"""Paths of jobs, relative to the API prefix."""

from django.urls import path

from apps.jobs import api

_ENV = "orgs/<uuid:org_id>/projects/<uuid:project_id>/environments/<uuid:environment_id>"

urlpatterns = [
    path("orgs/<uuid:org_id>/jobs", api.OrganizationJobsView.as_view()),
    path(f"{_ENV}/jobs", api.JobsView.as_view()),
    path(f"{_ENV}/jobs/<uuid:job_id>", api.JobView.as_view()),
    path(f"{_ENV}/jobs/<uuid:job_id>/retry", api.JobRetryView.as_view()),
]
