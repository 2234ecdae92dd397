from __future__ import annotations

from django.apps import AppConfig


class PipelinesConfig(AppConfig):
    """Pipeline drafts, which users edit, and the immutable versions promoted from them."""

    name = "apps.pipelines"

    def ready(self) -> None:
        from apps.pipelines import jobs

        jobs.register()
