"""The append-only audit chain."""

from django.apps import AppConfig


class AuditConfig(AppConfig):
    """Audit events and their chain heads."""

    name = "apps.audit"
