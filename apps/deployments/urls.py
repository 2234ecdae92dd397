"""Paths of this app, relative to the API's prefix."""

from django.urls import path

from apps.api.paths import ENVIRONMENT
from apps.deployments.api import bundles, deployments

ONE = f"{ENVIRONMENT}/deployments/<uuid:deployment_id>"

urlpatterns = [
    path(f"{ENVIRONMENT}/bundles", bundles.BundlesView.as_view(), name="bundles"),
    path(f"{ENVIRONMENT}/bundles/<uuid:bundle_id>", bundles.BundleDetailView.as_view(), name="bundle"),
    path("schemas/config-bundle", bundles.ConfigSchemaView.as_view(), name="config-schema"),
    path(f"{ENVIRONMENT}/deployments", deployments.DeploymentsView.as_view(), name="deployments"),
    path(ONE, deployments.DeploymentDetailView.as_view(), name="deployment"),
    path(f"{ONE}/targets", deployments.TargetsView.as_view(), name="deployment-targets"),
    path(f"{ONE}/events", deployments.EventsView.as_view(), name="deployment-events"),
    path(f"{ONE}/rollback", deployments.RollbackView.as_view(), name="deployment-rollback"),
    path(f"{ONE}/cancel", deployments.CancelView.as_view(), name="deployment-cancel"),
]
