"""Django app of the console: screens that span apps."""

from django.apps import AppConfig
from django.contrib.admin import apps as admin_apps


class ConsoleConfig(AppConfig):
    """The console: admin site, inbox and pages, health checks, and setup and run commands."""

    default = True
    name = "apps.console"

    def ready(self) -> None:
        from django.contrib import admin

        from apps.console import health

        health.register()
        # library screens would bypass the apps' services
        for model in list(admin.site._registry):
            if model._meta.app_label in ("django_q", "auth"):
                admin.site.unregister(model)


class ConsoleAdminConfig(admin_apps.AdminConfig):
    """Django's admin with the console's site."""

    default = False
    default_site = "apps.console.site.ConsoleSite"
