"""Read-only admin of config bundles. Deployments have their own page in the console."""

from __future__ import annotations

from django.contrib import admin

from apps.console.base.filters import SCOPE_FILTERS
from apps.console.base.model_admin import ScopedModelAdmin
from apps.deployments.models import ConfigBundle


@admin.register(ConfigBundle)
class ConfigBundleAdmin(ScopedModelAdmin):
    """Read-only admin of config bundles: a version with its configuration."""

    list_display = ("__str__", "where", "created_by_name", "used_at", "created_at")
    list_filter = SCOPE_FILTERS
    audit_kind = "bundle"
    search_fields = ("pipeline_name", "config_hash")
