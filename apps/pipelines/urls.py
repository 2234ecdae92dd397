"""Paths of this app, relative to the API's prefix."""

from django.urls import path

from apps.api.paths import ENVIRONMENT
from apps.pipelines import api

urlpatterns = [
    path(f"{ENVIRONMENT}/drafts", api.DraftsView.as_view(), name="drafts"),
    path(f"{ENVIRONMENT}/drafts/<uuid:draft_id>", api.DraftView.as_view(), name="draft"),
    path(f"{ENVIRONMENT}/drafts/<uuid:draft_id>/preview", api.PreviewView.as_view(), name="draft-preview"),
    path(f"{ENVIRONMENT}/drafts/<uuid:draft_id>/promote", api.PromoteView.as_view(), name="draft-promote"),
    path(f"{ENVIRONMENT}/versions", api.VersionsView.as_view(), name="versions"),
    path(f"{ENVIRONMENT}/versions/<uuid:version_id>", api.VersionView.as_view(), name="version"),
    path(f"{ENVIRONMENT}/versions/<uuid:version_id>/spec", api.VersionSpecView.as_view(), name="version-spec"),
    path(f"{ENVIRONMENT}/versions/<uuid:version_id>/diff", api.VersionDiffView.as_view(), name="version-diff"),
    path(f"{ENVIRONMENT}/versions/<uuid:version_id>/copy", api.VersionCopyView.as_view(), name="version-copy"),
]
