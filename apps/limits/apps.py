"""Limits on how often something may be tried."""

from django.apps import AppConfig


class LimitsConfig(AppConfig):
    """Throttles on sign-in, failed authentication and enrollment."""

    name = "apps.limits"
    label = "limits"
