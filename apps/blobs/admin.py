"""Admin list of stored files (read-only)."""

from __future__ import annotations

from django.contrib import admin

from apps.blobs.models import StoredBlob
from apps.console.base.filters import SCOPE_FILTERS
from apps.console.base.model_admin import ScopedModelAdmin


@admin.register(StoredBlob)
class StoredBlobAdmin(ScopedModelAdmin):
    """Signed bundles by digest."""

    list_display = ("sha256", "size", "where", "created_at")
    list_filter = SCOPE_FILTERS
    search_fields = ("sha256",)
