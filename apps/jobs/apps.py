"""Background jobs and chores."""

from django.apps import AppConfig


class JobsConfig(AppConfig):
    """Job rows, broker, runner, leases, schedule."""

    name = "apps.jobs"
    label = "jobs"

    def ready(self) -> None:
        from apps.core.readiness import register_check
        from apps.jobs.chores import check_chores, register_own
        from apps.jobs.liveness import check_worker

        register_check("worker", check_worker)
        register_check("chores", check_chores)
        register_own()
