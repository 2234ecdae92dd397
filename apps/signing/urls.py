"""Paths of signing keys, relative to the API prefix."""

from django.urls import path

from apps.signing.api import SigningKeysView

urlpatterns = [path("orgs/<uuid:org_id>/signing-keys", SigningKeysView.as_view())]
