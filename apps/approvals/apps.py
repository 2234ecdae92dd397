"""Policies, approvals, decisions, credentials."""

from django.apps import AppConfig


class ApprovalsConfig(AppConfig):
    """Who must agree before something is done, and the proof that they did."""

    name = "apps.approvals"
    label = "approvals"

    def ready(self) -> None:
        from apps.approvals import jobs, policy
        from apps.tenancy import registry

        registry.settings_check(policy.check_settings)
        jobs.register()
