"""Deployments over HTTP."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence

from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.api import ScopedView
from apps.access.roles import Permission
from apps.core.api import keyset_page, status_filter, tagged, text_filter, truth_filter
from apps.deployments import selectors, services
from apps.deployments.api.serializers import (
    DeploymentIn,
    ReasonIn,
    deployment_body,
    event_body,
    selector_of,
    strategy_of,
    target_body,
)
from apps.deployments.models import Deployment, DeploymentEvent, DeploymentStatus, Target, TargetStatus


def full_body(deployment: Deployment) -> dict[str, object]:
    """A deployment with the counts of its targets and its phases."""
    return deployment_body(deployment, selectors.overviews([deployment])[deployment.pk])


class DeploymentsView(ScopedView):
    """The environment's deployments."""

    level = "environment"
    permissions = {"GET": Permission.VIEW_ENVIRONMENT, "POST": Permission.OPERATE_ENVIRONMENT}

    def get(self, request: Request, **_path: uuid.UUID) -> Response:
        overviews: dict[uuid.UUID, selectors.Overview] = {}

        def count(page: Sequence[Deployment]) -> None:
            overviews.update(selectors.overviews(page))

        return keyset_page(
            request,
            selectors.deployments(self.scope),
            lambda d: deployment_body(d, overviews[d.pk]),
            filters={
                "status": status_filter(DeploymentStatus.values),
                "needs_redeployment": truth_filter("needs_redeployment", selectors.needing_redeployment),
                "q": text_filter("reason", "pipeline_name", "requested_by_name", "spec_hash", "config_hash"),
            },
            prepare=count,
        )

    def post(self, request: Request, **_path: uuid.UUID) -> Response:
        given = self.read(DeploymentIn)
        deployment = services.request_deployment(
            actor=self.principal,
            scope=self.scope,
            bundle_id=given["bundle_id"],
            targets=selector_of(given["targets"]),
            strategy=strategy_of(given.get("strategy")),
            timeout_seconds=given["timeout_seconds"],
            reason=given["reason"],
        )
        return Response(full_body(deployment), status=201)


class DeploymentDetailView(ScopedView):
    """One deployment."""

    level = "environment"
    permissions = {"GET": Permission.VIEW_ENVIRONMENT}

    def get(self, request: Request, deployment_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        body = full_body(selectors.get_deployment(self.scope, deployment_id))
        return tagged(request, body, hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32])


class TargetsView(ScopedView):
    """Its targets."""

    level = "environment"
    permissions = {"GET": Permission.VIEW_ENVIRONMENT}

    def get(self, request: Request, deployment_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        deployment = selectors.get_deployment(self.scope, deployment_id)
        return keyset_page(
            request,
            Target.objects.filter(deployment=deployment),
            target_body,
            filters={"status": status_filter(TargetStatus.values), "q": text_filter("agent_name")},
        )


class EventsView(ScopedView):
    """What happened to it, newest first."""

    level = "environment"
    permissions = {"GET": Permission.VIEW_ENVIRONMENT}

    def get(self, request: Request, deployment_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        deployment = selectors.get_deployment(self.scope, deployment_id)
        return keyset_page(
            request,
            DeploymentEvent.objects.filter(deployment=deployment),
            event_body,
            filters={"status": status_filter(DeploymentStatus.values, "to_status")},
        )


class RollbackView(ScopedView):
    """Take it back."""

    finds = selectors.get_deployment
    level = "environment"
    permissions = {"POST": Permission.OPERATE_ENVIRONMENT}

    def post(self, request: Request, deployment_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        selectors.get_deployment(self.scope, deployment_id)
        given = self.read(ReasonIn)
        return Response(
            full_body(
                services.rollback(
                    actor=self.principal, scope=self.scope, deployment_id=deployment_id, reason=given["reason"]
                )
            )
        )


class CancelView(ScopedView):
    """Call it off."""

    finds = selectors.get_deployment
    level = "environment"
    permissions = {"POST": Permission.OPERATE_ENVIRONMENT}

    def post(self, request: Request, deployment_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        selectors.get_deployment(self.scope, deployment_id)
        given = self.read(ReasonIn)
        return Response(
            full_body(
                services.cancel(
                    actor=self.principal, scope=self.scope, deployment_id=deployment_id, reason=given["reason"]
                )
            )
        )
