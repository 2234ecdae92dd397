"""Paths of this room, relative to the API's prefix."""

from django.urls import path

from apps.deployments.api import bundles, deployments

ENV = "orgs/<uuid:org_id>/projects/<uuid:project_id>/environments/<uuid:environment_id>"
ONE = f"{ENV}/deployments/<uuid:deployment_id>"

urlpatterns = [
    path(f"{ENV}/bundles", bundles.BundlesView.as_view(), name="bundles"),
    path(f"{ENV}/bundles/<uuid:bundle_id>", bundles.BundleDetailView.as_view(), name="bundle"),
    path("schemas/config-bundle", bundles.ConfigSchemaView.as_view(), name="config-schema"),
    path(f"{ENV}/deployments", deployments.DeploymentsView.as_view(), name="deployments"),
    path(ONE, deployments.DeploymentDetailView.as_view(), name="deployment"),
    path(f"{ONE}/targets", deployments.TargetsView.as_view(), name="deployment-targets"),
    path(f"{ONE}/events", deployments.EventsView.as_view(), name="deployment-events"),
    path(f"{ONE}/rollback", deployments.RollbackView.as_view(), name="deployment-rollback"),
    path(f"{ONE}/cancel", deployments.CancelView.as_view(), name="deployment-cancel"),
]
