"""Paths of the tree, relative to the API prefix."""

from django.urls import path

from apps.api.paths import ENVIRONMENT, ORGANIZATION, PROJECT
from apps.tenancy import api

urlpatterns = [
    path("orgs", api.OrganizationsView.as_view(), name="organizations"),
    path(ORGANIZATION, api.OrganizationView.as_view(), name="organization"),
    path(f"{ORGANIZATION}/projects", api.ProjectsView.as_view(), name="projects"),
    path(PROJECT, api.ProjectView.as_view(), name="project"),
    path(f"{PROJECT}/environments", api.EnvironmentsView.as_view(), name="environments"),
    path(ENVIRONMENT, api.EnvironmentView.as_view(), name="environment"),
]
