"""Paths of this room, relative to the API's prefix."""

from django.urls import path

from apps.pipelines import api

ENV = "orgs/<uuid:org_id>/projects/<uuid:project_id>/environments/<uuid:environment_id>"

urlpatterns = [
    path(f"{ENV}/drafts", api.DraftsView.as_view(), name="drafts"),
    path(f"{ENV}/drafts/<uuid:draft_id>", api.DraftView.as_view(), name="draft"),
    path(f"{ENV}/drafts/<uuid:draft_id>/preview", api.PreviewView.as_view(), name="draft-preview"),
    path(f"{ENV}/drafts/<uuid:draft_id>/promote", api.PromoteView.as_view(), name="draft-promote"),
    path(f"{ENV}/versions", api.VersionsView.as_view(), name="versions"),
    path(f"{ENV}/versions/<uuid:version_id>", api.VersionView.as_view(), name="version"),
    path(f"{ENV}/versions/<uuid:version_id>/spec", api.VersionSpecView.as_view(), name="version-spec"),
    path(f"{ENV}/versions/<uuid:version_id>/diff", api.VersionDiffView.as_view(), name="version-diff"),
    path(f"{ENV}/versions/<uuid:version_id>/copy", api.VersionCopyView.as_view(), name="version-copy"),
]
