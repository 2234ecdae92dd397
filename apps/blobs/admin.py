"""Stored files, to read."""

from __future__ import annotations

from django.contrib import admin

from apps.access.admin import ScopedModelAdmin
from apps.blobs.models import StoredBlob


@admin.register(StoredBlob)
class StoredBlobAdmin(ScopedModelAdmin):
    """Signed bundles by digest."""

    list_display = ("sha256", "size", "environment", "created_at")
    list_select_related = ("environment",)
    search_fields = ("sha256",)
