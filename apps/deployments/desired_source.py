"""Implementation of `apps.agents.registry.DesiredSource`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import BinaryIO, cast

from apps.agents.models import Agent
from apps.agents.registry import AgentReport, BundleDownload, Desired, Running, RunningDetail
from apps.approvals import services as approvals
from apps.approvals.models import Approval
from apps.blobs import services as blobs
from apps.blobs.models import StoredBlob
from apps.core.actors import ActorRef
from apps.core.db import require_row
from apps.core.errors import Conflict, NotFound, StorageUnavailable
from apps.deployments import selectors, services
from apps.deployments.models import Target
from apps.runtime.faults import fault_point
from apps.runtime.trust import TrustError


class DeploymentSource:
    """Desired state of agents, and processing of their reports (`apps.agents.registry.DesiredSource`)."""

    def desired(self, agent: Agent) -> Desired:
        return selectors.desired(agent)

    def desired_of_each(self, agent_ids: Sequence[uuid.UUID]) -> Mapping[uuid.UUID, Desired]:
        return selectors.desired_of_each(agent_ids)

    def report(self, *, agent: Agent, deployment_id: uuid.UUID, report: AgentReport) -> None:
        services.record_report(agent=agent, deployment_id=deployment_id, report=report)

    def require_target(self, agent: Agent, deployment_id: uuid.UUID) -> None:
        rows = Target.objects.filter(
            deployment_id=deployment_id, deployment__environment_id=agent.environment_id, agent_id=agent.pk
        )
        if not rows.exists():
            raise NotFound()

    def bundle_for(self, agent: Agent, deployment_id: uuid.UUID) -> BundleDownload:
        """Open the archive for a target that it was assigned to. Its credential must have been valid at the build.

        Raises Conflict `not_wanted` for a target that a rollback settled before the bundle was delivered.
        """
        target = require_row(
            Target.objects.select_related("deployment"),
            deployment_id=deployment_id,
            deployment__environment_id=agent.environment_id,
            agent_id=agent.pk,
            sequence__isnull=False,
        )
        deployment = target.deployment
        if deployment.key_revoked_at is not None:
            raise Conflict("Its signing key was revoked.", code="signing_key_revoked")
        blob = StoredBlob.objects.filter(environment_id=agent.environment_id, sha256=deployment.bundle_sha256).first()
        approval = Approval.objects.filter(pk=deployment.approval_id).first()
        if blob is None or approval is None or deployment.built_at_ms is None:
            raise NotFound()
        try:
            approvals.check_credential(approval, at_ms=deployment.built_at_ms)
        except TrustError as error:
            raise Conflict("Its approval credential is not valid.", code=error.code) from error
        try:
            stream = blobs.open_blob(blob)
        except StorageUnavailable:
            services.extend_timeout_for_storage(agent.pk)
            raise
        if target.handed_out_at is None:
            # storage may have been slow, and a rollback may have begun since
            if not services.record_bundle_download(agent_id=agent.pk, deployment_id=deployment_id):
                stream.close()
                raise Conflict("It was rolled back before delivery.", code="not_wanted")
            fault_point("deployments.bundle.handed_out")
        return BundleDownload(stream=cast(BinaryIO, stream), size=blob.size, sha256=blob.sha256)

    def removal_blockers(self, agent: Agent) -> list[str]:
        return selectors.in_flight_on(agent.pk)

    def settle_targets_of_agent(self, *, actor: ActorRef, agent: Agent) -> None:
        services.settle_targets_of_agent(actor=actor, agent=agent)

    def heartbeat_seen(self, agent: Agent, healthy: bool, running: Running | None) -> None:
        """Fail the target on an unhealthy heartbeat during a bake. At other times health has no effect."""
        if not healthy:
            services.record_unhealthy_heartbeat(agent=agent, running=running)

    def has_in_flight(self, agent: Agent) -> bool:
        return selectors.has_in_flight(agent.pk)

    def running_detail(self, agent: Agent) -> RunningDetail:
        return selectors.running_detail(agent)
