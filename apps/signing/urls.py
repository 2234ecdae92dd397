"""Paths of signing keys, relative to the API prefix."""

from django.urls import path

from apps.api.paths import ORGANIZATION
from apps.signing import api

urlpatterns = [
    path(f"{ORGANIZATION}/signing-keys", api.SigningKeysView.as_view(), name="signing-keys"),
    path(f"{ORGANIZATION}/signing-keys/<str:kid>/retire", api.RetireView.as_view(), name="signing-key-retire"),
    path(f"{ORGANIZATION}/signing-keys/<str:kid>/revoke", api.RevokeView.as_view(), name="signing-key-revoke"),
]
