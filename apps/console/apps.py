"""Screens that span rooms."""

from django.apps import AppConfig
from django.contrib.admin import apps as admin_apps


class ConsoleConfig(AppConfig):
    """The console: admin site, inbox, pages; health; setting up and running."""

    default = True
    name = "apps.console"
    label = "console"

    def ready(self) -> None:
        from django.contrib import admin

        from apps.console import health

        health.register()
        # screens of libraries that would be a way around the rooms' services
        for model in list(admin.site._registry):
            if model._meta.app_label in ("django_q", "auth"):
                admin.site.unregister(model)


class ConsoleAdminConfig(admin_apps.AdminConfig):
    """Django's admin, on our own site."""

    default = False
    default_site = "apps.console.site.ConsoleSite"
