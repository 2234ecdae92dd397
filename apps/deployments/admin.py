"""Config bundles, to read. Deployments have a page of their own in the console."""

from __future__ import annotations

from django.contrib import admin

from apps.access.admin import ScopedModelAdmin
from apps.deployments.models import ConfigBundle


@admin.register(ConfigBundle)
class ConfigBundleAdmin(ScopedModelAdmin):
    """A version with its configuration."""

    list_display = ("pipeline_name", "version_number", "environment", "config_hash", "used_at", "created_at")
    list_select_related = ("environment",)
    search_fields = ("pipeline_name", "config_hash")
