"""Background jobs and chores."""

from django.apps import AppConfig


class JobsConfig(AppConfig):
    """Job rows, leases, workers, schedules, chores."""

    name = "apps.jobs"

    def ready(self) -> None:
        from apps.core.metrics import count_by_status, register_gauge
        from apps.core.readiness import WEB, WORKER, register_check
        from apps.jobs import process_health, schedules
        from apps.jobs.chores import check_chores, failed_items, register_own
        from apps.jobs.models import Job, JobStatus
        from apps.tenancy import registry

        for level in ("organization", "environment"):
            registry.on_created(level, schedules.add_schedules)
        registry.on_deleted(schedules.remove_schedules)
        register_check("worker", process_health.check_worker)
        register_check("chores", check_chores, needed_by=(WORKER,))
        register_check("clock", process_health.compare_clocks, needed_by=(WEB,))
        register_own()
        register_gauge(
            "byteor_chore_failed_items",
            "Items that failed in the last run of a chore, or wait for their next try",
            failed_items,
            labels=("chore",),
        )
        register_gauge(
            "byteor_clock_apart_seconds",
            "How far this process's clock is from the middle of all live ones",
            process_health.apart_by_process,
        )
        register_gauge(
            "byteor_jobs",
            "Jobs by status",
            lambda: count_by_status(Job.objects.all(), JobStatus.values),
            labels=("status",),
        )
