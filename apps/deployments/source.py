"""The answers that the agents' room asks for."""

from __future__ import annotations

import uuid
from typing import BinaryIO, cast

from apps.agents.models import Agent
from apps.agents.registry import AgentReport, BundleDownload, Desired, Running
from apps.approvals import services as approvals
from apps.approvals.models import Approval
from apps.blobs import services as blobs
from apps.blobs.models import StoredBlob
from apps.core.actors import ActorRef
from apps.core.errors import Conflict, NotFound
from apps.deployments import selectors, services
from apps.deployments.models import Target
from apps.runtime.faults import fault_point
from apps.runtime.trust import TrustError


class DeploymentSource:
    """What agents shall run, and what becomes of what they say (`apps.agents.registry.DesiredSource`)."""

    def desired(self, agent: Agent) -> Desired:
        return selectors.desired(agent)

    def report(self, *, agent: Agent, deployment_id: uuid.UUID, report: AgentReport) -> None:
        services.take_report(agent=agent, deployment_id=deployment_id, report=report)

    def bundle_for(self, agent: Agent, deployment_id: uuid.UUID) -> BundleDownload:
        """The archive, to a target it was assigned to. The credential must have been good when it was built."""
        target = (
            Target.objects.select_related("deployment")
            .filter(
                deployment_id=deployment_id,
                deployment__environment_id=agent.environment_id,
                agent_id=agent.pk,
                sequence__isnull=False,
            )
            .first()
        )
        if target is None:
            raise NotFound()
        deployment = target.deployment
        if deployment.key_revoked_at is not None:
            raise Conflict("It is under a signing key that was revoked.", code="signing_key_revoked")
        blob = StoredBlob.objects.filter(environment_id=agent.environment_id, sha256=deployment.bundle_sha256).first()
        approval = Approval.objects.filter(pk=deployment.approval_id).first()
        if blob is None or approval is None or deployment.built_at_ms is None:
            raise NotFound()
        try:
            approvals.check_credential(approval, at_ms=deployment.built_at_ms)
        except TrustError as error:
            raise Conflict("Its approval credential is not good.", code=error.code) from error
        if target.handed_out_at is None:
            services.note_handed_out(agent_id=agent.pk, deployment_id=deployment_id)
            fault_point("deployments.bundle.handed_out")
        return BundleDownload(stream=cast(BinaryIO, blobs.open_blob(blob)), size=blob.size, sha256=blob.sha256)

    def removal_blockers(self, agent: Agent) -> list[str]:
        return selectors.in_flight_on(agent.pk)

    def agent_removed(self, *, actor: ActorRef, agent: Agent) -> None:
        services.agent_removed(actor=actor, agent=agent)

    def heartbeat_seen(self, agent: Agent, healthy: bool, running: Running | None) -> None:
        """Health decides only during a bake: there an unhealthy heartbeat fails the target."""
        if not healthy:
            services.take_unhealthy_heartbeat(agent=agent, running=running)

    def has_in_flight(self, agent: Agent) -> bool:
        return selectors.has_in_flight(agent.pk)
