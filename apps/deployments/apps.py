"""Deployments: from a request to what runs on the hosts."""

from django.apps import AppConfig


class DeploymentsConfig(AppConfig):
    """Config bundles, deployments, targets, rollback."""

    name = "apps.deployments"
    label = "deployments"

    def ready(self) -> None:
        from apps.agents.registry import set_desired_source
        from apps.approvals.registry import register_subject
        from apps.deployments import jobs, selectors
        from apps.deployments.services.revocation import DeploymentsUnderKey
        from apps.deployments.source import DeploymentSource
        from apps.deployments.subject import DeploymentSubject
        from apps.signing import registry as signing
        from apps.tenancy import registry as tenancy

        set_desired_source(DeploymentSource())
        register_subject("deploy", DeploymentSubject())
        tenancy.deletion_guard(selectors.deletion_blockers)
        signing.register_dependents(DeploymentsUnderKey())
        jobs.register()
