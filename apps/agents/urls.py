"""Paths of this room, relative to the API's prefix."""

from django.urls import path

from apps.agents.api import people, protocol, releases
from apps.agents.lane.door import heartbeat_door

ENV = "orgs/<uuid:org_id>/projects/<uuid:project_id>/environments/<uuid:environment_id>"

urlpatterns = [
    # first: nothing is asked for more often
    path(
        "agents/<uuid:agent_id>/heartbeat",
        heartbeat_door(protocol.HeartbeatView.as_view()),
        name="agent-heartbeat",
    ),
    path(f"{ENV}/enrollment-tokens", people.EnrollmentTokensView.as_view(), name="enrollment-tokens"),
    path(
        f"{ENV}/enrollment-tokens/<uuid:token_id>",
        people.EnrollmentTokenView.as_view(),
        name="enrollment-token",
    ),
    path(f"{ENV}/agents", people.AgentsView.as_view(), name="agents"),
    path(f"{ENV}/agents/<uuid:agent_id>", people.AgentDetailView.as_view(), name="agent"),
    path(f"{ENV}/agents/<uuid:agent_id>/revoke-key", people.RevokeKeyView.as_view(), name="agent-revoke-key"),
    path("agents/<uuid:agent_id>/deployment", protocol.DeploymentView.as_view(), name="agent-deployment"),
    path(
        "agents/<uuid:agent_id>/deployments/<uuid:deployment_id>/status",
        protocol.StatusView.as_view(),
        name="agent-deployment-status",
    ),
    path(
        "agents/<uuid:agent_id>/deployments/<uuid:deployment_id>/bundle",
        protocol.BundleView.as_view(),
        name="agent-deployment-bundle",
    ),
    path("agents/<uuid:agent_id>/signing-keys", protocol.SigningKeysView.as_view(), name="agent-signing-keys"),
    path("agents/<uuid:agent_id>/rotate-key", protocol.RotateKeyView.as_view(), name="agent-rotate-key"),
    path("agents/<uuid:agent_id>/release", releases.ReleaseView.as_view(), name="agent-release"),
    path("agents/<uuid:agent_id>/release/byteor-agent.pyz", releases.ReleaseFileView.as_view(), name="agent-program"),
]
