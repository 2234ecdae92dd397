"""Principals, roles, tokens, sign-in."""

from django.apps import AppConfig


class AccessConfig(AppConfig):
    """People and their permissions."""

    name = "apps.access"

    def ready(self) -> None:
        from apps.access import hooks

        hooks.register()
