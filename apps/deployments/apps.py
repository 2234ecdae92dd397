"""Django app of deployments."""

from django.apps import AppConfig


class DeploymentsConfig(AppConfig):
    """Config bundles, deployments, targets, rollback."""

    name = "apps.deployments"

    def ready(self) -> None:
        from apps.agents.registry import set_desired_source
        from apps.approvals.registry import register_subject
        from apps.core.metrics import count_by_status, register_gauge
        from apps.deployments import jobs, selectors
        from apps.deployments.approval_subject import DeploymentSubject
        from apps.deployments.desired_source import DeploymentSource
        from apps.deployments.models import Deployment, DeploymentStatus
        from apps.deployments.services.key_revocation import DeploymentsUnderKey
        from apps.signing import registry as signing
        from apps.tenancy import registry as tenancy

        set_desired_source(DeploymentSource())
        register_subject("deploy", DeploymentSubject())
        tenancy.deletion_guard(selectors.deletion_blockers)
        tenancy.deletion_note(selectors.running_note)
        signing.register_dependents(DeploymentsUnderKey())
        jobs.register()
        register_gauge(
            "byteor_deployments",
            "Deployments by status",
            lambda: count_by_status(Deployment.objects.all(), DeploymentStatus.values),
            labels=("status",),
        )
