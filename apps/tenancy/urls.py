"""Paths of the tree, relative to the API prefix."""

from django.urls import path

from apps.tenancy import api

_PROJECT = "orgs/<uuid:org_id>/projects/<uuid:project_id>"

urlpatterns = [
    path("orgs", api.OrganizationsView.as_view()),
    path("orgs/<uuid:org_id>", api.OrganizationView.as_view()),
    path("orgs/<uuid:org_id>/projects", api.ProjectsView.as_view()),
    path(_PROJECT, api.ProjectView.as_view()),
    path(f"{_PROJECT}/environments", api.EnvironmentsView.as_view()),
    path(f"{_PROJECT}/environments/<uuid:environment_id>", api.EnvironmentView.as_view()),
]
