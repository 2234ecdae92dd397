"""Paths of this app, relative to the API prefix."""

from django.urls import path

from apps.agents.api import people, protocol, releases
from apps.api.paths import AGENT, ENVIRONMENT

ONE = f"{ENVIRONMENT}/agents/<uuid:agent_id>"
OF_DEPLOYMENT = f"{AGENT}/deployments/<uuid:deployment_id>"

urlpatterns = [
    # first: the most frequent request
    path(f"{AGENT}/heartbeat", protocol.HeartbeatView.as_view(), name="agent-heartbeat"),
    path(f"{ENVIRONMENT}/enrollment-tokens", people.EnrollmentTokensView.as_view(), name="enrollment-tokens"),
    path(
        f"{ENVIRONMENT}/enrollment-tokens/<uuid:token_id>",
        people.EnrollmentTokenView.as_view(),
        name="enrollment-token",
    ),
    path(f"{ENVIRONMENT}/agents", people.AgentsView.as_view(), name="agents"),
    path(ONE, people.AgentDetailView.as_view(), name="agent"),
    path(f"{ONE}/revoke-key", people.RevokeKeyView.as_view(), name="agent-revoke-key"),
    path(f"{AGENT}/deployment", protocol.DeploymentView.as_view(), name="agent-deployment"),
    path(f"{OF_DEPLOYMENT}/status", protocol.StatusView.as_view(), name="agent-deployment-status"),
    path(f"{OF_DEPLOYMENT}/bundle", protocol.BundleView.as_view(), name="agent-deployment-bundle"),
    path(f"{AGENT}/signing-keys", protocol.SigningKeysView.as_view(), name="agent-signing-keys"),
    path(f"{AGENT}/rotate-key", protocol.RotateKeyView.as_view(), name="agent-rotate-key"),
    path(f"{AGENT}/release", releases.ReleaseView.as_view(), name="agent-release"),
    path(f"{AGENT}/release/byteor-agent.pyz", releases.ReleaseFileView.as_view(), name="agent-program"),
]
