"""API of deployments."""

from __future__ import annotations

import uuid

from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.roles import Permission
from apps.api.base import ScopedView
from apps.api.etags import digest_tag, etag_response
from apps.api.operations import operation
from apps.api.parameters import boolean_filter, id_filter, status_filter, text_filter
from apps.deployments import selectors, services
from apps.deployments.api.documents import (
    DeploymentDocument,
    EventDocument,
    RequestedDeployment,
    TargetDocument,
    deployment_detail_document,
    deployment_document,
    event_document,
    target_document,
    warning_documents,
)
from apps.deployments.api.serializers import DeploymentInput, ReasonInput, selector_of, strategy_of
from apps.deployments.compatibility import warnings_of
from apps.deployments.models import Deployment, DeploymentEvent, DeploymentStatus, Target, TargetStatus

VIEW, OPERATE = Permission.VIEW_ENVIRONMENT, Permission.OPERATE_ENVIRONMENT


class DeploymentsView(ScopedView):
    """Deployments of an environment."""

    @operation(
        VIEW,
        lists=DeploymentDocument,
        filters={
            "status": status_filter(DeploymentStatus.values),
            "bundle_id": id_filter("bundle_id"),
            "needs_redeployment": boolean_filter(selectors.needing_redeployment),
            "q": text_filter("reason", "pipeline_name", "requested_by_name", "spec_hash", "config_hash"),
        },
    )
    def get(self, request: Request) -> Response:
        """List the deployments of the environment."""
        overviews: dict[uuid.UUID, selectors.Overview] = {}
        return self.page(
            selectors.deployments(self.scope),
            lambda deployment: deployment_document(deployment, overviews[deployment.pk]),
            prepare=lambda page: overviews.update(selectors.overviews(page)),
        )

    @operation(
        OPERATE,
        body=DeploymentInput,
        answer=RequestedDeployment,
        status=201,
        errors=(
            "unknown_bundle",
            "no_matching_agent",
            "invalid_strategy",
            "deployment_cap",
            "bundle_in_flight",
            "no_eligible_reviewer",
            "policy_recently_weakened",
        ),
    )
    def post(self, request: Request) -> Response:
        """Request a deployment.

        `warnings` is a list of `{code, agent_id, agent_name, detail}`, which may be empty. The code `agent_too_old` names a
        target whose agent is older than an op or an action that the pipeline uses. Warnings do not prevent the deployment.
        """
        deployment = services.request_deployment(
            actor=self.principal,
            scope=self.scope,
            bundle_id=self.given["bundle_id"],
            targets=selector_of(self.given["targets"]),
            strategy=strategy_of(self.given.get("strategy")),
            timeout_seconds=self.given["timeout_seconds"],
            reason=self.given["reason"],
        )
        warnings = warning_documents(warnings_of(deployment))
        return Response({**deployment_detail_document(deployment), "warnings": warnings}, status=201)


class _DeploymentView(ScopedView):
    """Base of the views of one deployment."""

    queryset = Deployment.objects.all()
    found: Deployment


class DeploymentDetailView(_DeploymentView):
    """A deployment."""

    @operation(VIEW, answer=DeploymentDocument)
    def get(self, request: Request) -> Response:
        """Read a deployment.

        `status_reason` is a stable code, a colon and a sentence. While an approved deployment is blocked, the code is
        `target_busy` (other deployments use some of its agents, or come first) or `build_retrying` (the last attempt to
        build its bundle failed, for example because storage or a signing key was not available; it is retried
        automatically). Lists omit these two.
        """
        body = deployment_detail_document(self.found)
        return etag_response(request, body, digest_tag(body))


class TargetsView(_DeploymentView):
    """Targets of a deployment."""

    @operation(
        VIEW,
        lists=TargetDocument,
        filters={"status": status_filter(TargetStatus.values), "q": text_filter("agent_name")},
    )
    def get(self, request: Request) -> Response:
        """List the targets of the deployment."""
        return self.page(Target.objects.filter(deployment=self.found), target_document)


class EventsView(_DeploymentView):
    """Events of a deployment."""

    @operation(VIEW, lists=EventDocument, filters={"status": status_filter(DeploymentStatus.values, "to_status")})
    def get(self, request: Request) -> Response:
        """List the events of the deployment, newest first."""
        return self.page(DeploymentEvent.objects.filter(deployment=self.found), event_document)


class RollbackView(_DeploymentView):
    """Rollback of a deployment."""

    @operation(
        OPERATE,
        body=ReasonInput,
        answer=DeploymentDocument,
        errors=("nothing_to_roll_back", "target_busy", "superseded", "signing_key_revoked"),
    )
    def post(self, request: Request) -> Response:
        """Roll the deployment back."""
        rolled_back = services.rollback(
            actor=self.principal, scope=self.scope, deployment_id=self.found.pk, reason=self.given["reason"]
        )
        return Response(deployment_detail_document(rolled_back))


class CancelView(_DeploymentView):
    """Cancellation of a deployment."""

    @operation(
        OPERATE, body=ReasonInput, answer=DeploymentDocument, errors=("deployment_completed", "comment_required")
    )
    def post(self, request: Request) -> Response:
        """Cancel the deployment."""
        cancelled = services.cancel(
            actor=self.principal, scope=self.scope, deployment_id=self.found.pk, reason=self.given["reason"]
        )
        return Response(deployment_detail_document(cancelled))
