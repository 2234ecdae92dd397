"""API of agents and enrollment tokens for people, and enrollment for hosts."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.conf import settings
from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.roles import Permission
from apps.agents import selectors, services
from apps.agents.api.documents import (
    AgentDetail,
    AgentDocument,
    CreatedEnrollmentToken,
    EnrolledDocument,
    EnrollmentTokenDocument,
    agent_document,
    agent_etag,
    enrollment_token_document,
)
from apps.agents.api.serializers import AgentPatchInput, EnrollInput, EnrollmentTokenInput, merged_labels
from apps.agents.models import Agent, EnrollmentToken, Liveness
from apps.api.authentication.agents import EnrollmentAuthentication, idempotency_key_of
from apps.api.base import ScopedView, no_content_response
from apps.api.etags import check_if_match, etag_response
from apps.api.operations import operation
from apps.api.parameters import BOOLEAN, choice_filter, text_filter
from apps.api.serializers import EmptyInput
from apps.core import clock
from apps.core.errors import NotFound
from apps.limits import services as limits
from apps.signing import services as signing

VIEW, OPERATE = Permission.VIEW_ENVIRONMENT, Permission.OPERATE_ENVIRONMENT


class EnrollmentTokensView(ScopedView):
    """Enrollment tokens of an environment."""

    @operation(VIEW, lists=EnrollmentTokenDocument, filters={"q": text_filter("name")})
    def get(self, request: Request) -> Response:
        """List the environment's enrollment tokens."""
        return self.page(selectors.enrollment_tokens(self.scope), enrollment_token_document)

    @operation(OPERATE, body=EnrollmentTokenInput, answer=CreatedEnrollmentToken, status=201)
    def post(self, request: Request) -> Response:
        """Create an enrollment token. Its text is in this response only."""
        token, text = services.create_enrollment_token(
            actor=self.principal,
            scope=self.scope,
            name=self.given["name"],
            max_uses=self.given["max_uses"],
            expires_in=dt.timedelta(seconds=self.given["expires_in_seconds"]),
            labels=self.given["labels"],
        )
        return Response({**enrollment_token_document(token), "token": text.reveal()}, status=201)


class EnrollmentTokenView(ScopedView):
    """An enrollment token."""

    queryset = EnrollmentToken.objects.filter(revoked_at__isnull=True)
    found: EnrollmentToken

    @operation(VIEW, answer=EnrollmentTokenDocument)
    def get(self, request: Request) -> Response:
        """Return an enrollment token."""
        return Response(enrollment_token_document(self.found))

    @operation(OPERATE, status=204)
    def delete(self, request: Request) -> Response:
        """Delete an enrollment token. Agents that enrolled with it stay."""
        services.delete_enrollment_token(actor=self.principal, scope=self.scope, token_id=self.found.pk)
        return no_content_response()


class AgentsView(ScopedView):
    """Agents of an environment."""

    def authorize(self, request: Request) -> None:
        """People as everywhere; an enrollment token is for its own environment, within that environment's limit."""
        if not isinstance(request.auth, EnrollmentToken):
            super().authorize(request)
            return
        token = request.auth
        project = token.environment.project
        limits.check_enrollment(token.environment)
        own = {"org_id": project.organization_id, "project_id": project.pk, "environment_id": token.environment_id}
        if self.kwargs != own:
            raise NotFound()

    @operation(
        VIEW,
        lists=AgentDocument,
        filters={
            "status": choice_filter(
                Liveness.values, lambda rows, status: rows & Agent.objects.with_liveness(status, clock.now())
            ),
            "q": text_filter("name", "hostname"),
        },
    )
    def get(self, request: Request) -> Response:
        """List the environment's agents."""
        return self.page(selectors.all_in(self.scope), agent_document)

    @operation(
        authentication=EnrollmentAuthentication,
        body=EnrollInput,
        answer=EnrolledDocument,
        status=201,
        errors=("name_taken", "token_used"),
    )
    def post(self, request: Request) -> Response:
        """Enroll a host with an enrollment token. The agent's key is in this response only."""
        token: EnrollmentToken = request.auth  # type: ignore[assignment]
        enrolled = services.enroll(
            actor=self.principal,
            token=token,
            idempotency_key=idempotency_key_of(request),
            name=self.given["name"],
            hostname=self.given["hostname"],
            reported_labels=self.given["labels"],
            version=self.given["version"],
        )
        environment = token.environment
        organization_id = environment.project.organization_id
        others = selectors.same_hostname([enrolled.agent]).get(enrolled.agent.pk, [])
        body = EnrolledDocument(
            agent_id=str(enrolled.agent.pk),
            name=enrolled.agent.name,
            api_key=enrolled.api_key.reveal(),
            org_id=str(organization_id),
            project_id=str(environment.project_id),
            environment_id=str(environment.pk),
            posture=environment.posture,
            signing_keys=signing.enrollment_key_set(organization_id),
            heartbeat_seconds=settings.BYTEOR_HEARTBEAT_SECONDS,
            warnings=[selectors.describe_same_hostname(others)] if others else [],
        )
        return Response(body, status=201)

    def location(self, request: Any, body: Any) -> str:
        return f"{request.path}/{body['agent_id']}"


class _AgentView(ScopedView):
    """Base of the views of one agent, for people."""

    queryset = Agent.objects.all()
    found: Agent


class AgentDetailView(_AgentView):
    """An agent."""

    def _shown(self, request: Request, agent: Agent) -> Response:
        warnings = selectors.warnings_about([agent], clock.now())
        body: AgentDetail = {
            **agent_document(agent),
            "warnings": [{"code": each.code, "detail": each.detail} for each in warnings],
        }
        return etag_response(request, body, agent_etag(agent, body))

    @operation(VIEW, answer=AgentDetail)
    def get(self, request: Request) -> Response:
        """Return an agent, with warnings."""
        return self._shown(request, self.found)

    @operation(OPERATE, body=AgentPatchInput, answer=AgentDetail, errors=("name_taken",))
    def patch(self, request: Request) -> Response:
        """Rename an agent or change its labels, by a JSON Merge Patch (RFC 7396)."""
        given = self.given
        agent = services.update_agent(
            actor=self.principal,
            scope=self.scope,
            agent_id=self.found.pk,
            name=given.get("name"),
            relabel=(lambda labels: merged_labels(labels, given["labels"])) if "labels" in given else None,
            guard=lambda row: check_if_match(request, row.rev),
        )
        return self._shown(request, agent)

    @operation(OPERATE, parameters={"force": BOOLEAN}, status=204, errors=("agent_in_flight",))
    def delete(self, request: Request) -> Response:
        """Delete an agent and revoke its keys. With a deployment in flight on it, 409 `agent_in_flight` unless
        `force=true`."""
        services.remove_agent(
            actor=self.principal,
            scope=self.scope,
            agent_id=self.found.pk,
            force=self.query["force"],
            guard=lambda row: check_if_match(request, row.rev),
        )
        return no_content_response()


class RevokeKeyView(_AgentView):
    """Revocation of an agent's keys."""

    @operation(
        OPERATE, body=EmptyInput, parameters={"force": BOOLEAN}, answer=AgentDocument, errors=("agent_in_flight",)
    )
    def post(self, request: Request) -> Response:
        """Revoke every key of an agent. With a deployment in flight on it, 409 `agent_in_flight` unless `force=true`."""
        agent = services.revoke_agent_key(
            actor=self.principal, scope=self.scope, agent_id=self.found.pk, force=self.query["force"]
        )
        return Response(agent_document(agent))
