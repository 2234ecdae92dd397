"""Paths of signing keys, relative to the API prefix."""

from django.urls import path

from apps.signing.api import RetireView, RevokeView, SigningKeysView

urlpatterns = [
    path("orgs/<uuid:org_id>/signing-keys", SigningKeysView.as_view()),
    path("orgs/<uuid:org_id>/signing-keys/<str:kid>/retire", RetireView.as_view()),
    path("orgs/<uuid:org_id>/signing-keys/<str:kid>/revoke", RevokeView.as_view()),
]
