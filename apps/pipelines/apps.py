from __future__ import annotations

from django.apps import AppConfig


class PipelinesConfig(AppConfig):
    """Drafts, which are text that people edit, and versions, which are what was frozen of it."""

    name = "apps.pipelines"
    label = "pipelines"

    def ready(self) -> None:
        from apps.pipelines import jobs

        jobs.register()
