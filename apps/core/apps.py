"""Foundations of the other apps."""

from django.apps import AppConfig


class CoreConfig(AppConfig):
    """Ids, clock, errors, database helpers, state machines, notifications."""

    name = "apps.core"
