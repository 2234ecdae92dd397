"""Ground floor: what every room stands on."""

from django.apps import AppConfig


class CoreConfig(AppConfig):
    """Ids, clock, errors, problem documents, pagination, guarded state machines."""

    name = "apps.core"
    label = "core"
