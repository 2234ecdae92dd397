"""Organizations, projects, environments."""

from django.apps import AppConfig


class TenancyConfig(AppConfig):
    """The ownership tree and its deletion."""

    name = "apps.tenancy"
