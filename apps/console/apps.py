"""Screens that span rooms."""

from django.apps import AppConfig
from django.contrib.admin import apps as admin_apps


class ConsoleConfig(AppConfig):
    """The console: admin site, inbox, pages; health; setting up and running."""

    default = True
    name = "apps.console"
    label = "console"

    def ready(self) -> None:
        from apps.console import health

        health.register()


class ConsoleAdminConfig(admin_apps.AdminConfig):
    """Django's admin, on our own site."""

    default = False
    default_site = "apps.console.site.ConsoleSite"
