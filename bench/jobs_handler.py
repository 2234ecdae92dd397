"""The no-op job, registered as an app registers its own."""

from __future__ import annotations

from django.apps import AppConfig

TYPE = "bench_noop"


class BenchConfig(AppConfig):
    """Registers the handler."""

    name = "bench"

    def ready(self) -> None:
        from apps.jobs.registry import JobRun, register_handler
        from bench.jobs_effect import note_effect

        def run(run: JobRun) -> None:
            note_effect(run.subject_id)

        register_handler(TYPE, run)
