"""Policies, approvals, decisions, credentials."""

from django.apps import AppConfig


class ApprovalsConfig(AppConfig):
    """Approvals of deployments, and credentials that prove them."""

    name = "apps.approvals"

    def ready(self) -> None:
        from apps.access.registry import on_roles_changed
        from apps.approvals import jobs, policy
        from apps.approvals.services.quorum import complete_quorums_of_organization
        from apps.tenancy import registry

        registry.settings_check(policy.check_settings)
        registry.policy_fields(*policy.FIELDS)
        on_roles_changed(complete_quorums_of_organization)
        jobs.register()
