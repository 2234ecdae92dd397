"""What people do: enrollment tokens, the list of agents, labels, revoking, removing.

POST on the list is the door by which a host comes in, with an enrollment token alone.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from django.conf import settings
from django.db import models
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.access.api.base import ScopedView, no_content
from apps.access.roles import Permission
from apps.agents import selectors, services
from apps.agents.api.serializers import AgentPatchIn, EmptyIn, EnrollIn, EnrollmentTokenIn, merged_labels
from apps.agents.authentication import authenticate_enrollment, enrollment_principal, idempotency_key_of
from apps.agents.models import Agent, EnrollmentToken, Liveness
from apps.core import clock
from apps.core.api import (
    check_if_match,
    keyset_page,
    rfc3339,
    tagged,
    text_filter,
    validated,
)
from apps.core.errors import BadRequest, FieldError, NotFound
from apps.limits import services as limits
from apps.signing import services as signing


def agent_body(agent: Agent) -> dict[str, object]:
    """An agent as the API shows it."""
    return {
        "id": str(agent.pk),
        "name": agent.name,
        "labels": agent.labels,
        "reported_labels": agent.reported_labels,
        "hostname": agent.hostname,
        "status": agent.status,
        "reported_status": agent.reported_status,
        "healthy": agent.healthy,
        "health_detail": agent.health_detail,
        "metrics": agent.metrics,
        "version": agent.version,
        "last_seen_at": rfc3339(agent.last_seen_at),
        "running": agent.running,
        "key_set_version": agent.key_set_version,
        "directive_seq": agent.directive_seq,
        "revoked_at": rfc3339(agent.revoked_at),
        "created_at": rfc3339(agent.created_at),
        "updated_at": rfc3339(agent.updated_at),
    }


def agent_tag(agent: Agent, body: dict[str, object]) -> str:
    """`<edit>.<what it shows>`: what the host says changes the second part only."""
    return f"{agent.rev}.{hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]}"


def token_body(token: EnrollmentToken) -> dict[str, object]:
    """An enrollment token as the API shows it: never its text."""
    return {
        "id": str(token.pk),
        "name": token.name,
        "prefix": token.public_id,
        "scope": "agent:enroll",
        "labels": token.labels,
        "max_uses": token.max_uses,
        "uses": token.uses,
        "expires_at": rfc3339(token.expires_at),
        "last_used_at": rfc3339(token.last_used_at),
        "created_by": str(token.created_by) if token.created_by else None,
        "created_at": rfc3339(token.created_at),
    }


def _liveness_filter(rows: models.QuerySet[Any], value: str) -> models.QuerySet[Any]:
    if value not in Liveness.values:
        detail = f"One of {', '.join(Liveness.values)} is expected."
        raise BadRequest(detail, code="bad_filter", errors=[FieldError("?status", "bad_filter", detail)])
    return rows & Agent.objects.with_liveness(value, clock.now())


def forced(request: Request) -> bool:
    """`?force=true`. BadRequest for anything but true and false, and for other parameters."""
    for name in request.query_params:
        if name != "force":
            raise BadRequest(f"'{name[:64]}' is not known here.", code="bad_parameter")
    text = request.query_params.get("force", "false")
    if text not in ("true", "false"):
        raise BadRequest("force is true or false.", code="bad_parameter")
    return text == "true"


class EnrollmentTokensView(ScopedView):
    """The environment's enrollment tokens."""

    permissions: ClassVar[Mapping[str, Permission]] = {
        "GET": Permission.VIEW_ENVIRONMENT,
        "POST": Permission.OPERATE_ENVIRONMENT,
    }

    def get(self, request: Request, **_path: uuid.UUID) -> Response:
        rows = selectors.enrollment_tokens(self.scope)
        return keyset_page(request, rows, token_body, filters={"q": text_filter("name")})

    def post(self, request: Request, **_path: uuid.UUID) -> Response:
        given = self.read(EnrollmentTokenIn)
        token, text = services.create_enrollment_token(
            actor=self.principal,
            scope=self.scope,
            name=given["name"],
            max_uses=given["max_uses"],
            expires_in=dt.timedelta(seconds=given["expires_in_seconds"]),
            labels=given["labels"],
        )
        return Response(
            {**token_body(token), "token": text.reveal()}, status=201, headers={"Cache-Control": "no-store"}
        )


class EnrollmentTokenView(ScopedView):
    """One enrollment token."""

    finds = selectors.get_enrollment_token
    permissions: ClassVar[Mapping[str, Permission]] = {
        "GET": Permission.VIEW_ENVIRONMENT,
        "DELETE": Permission.OPERATE_ENVIRONMENT,
    }

    def get(self, request: Request, token_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        return Response(token_body(selectors.get_enrollment_token(self.scope, token_id)))

    def delete(self, request: Request, token_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        services.delete_enrollment_token(actor=self.principal, scope=self.scope, token_id=token_id)
        return no_content()


class AgentsView(ScopedView):
    """GET: the environment's agents, for people. POST: enrollment, for hosts."""

    permissions: ClassVar[Mapping[str, Permission]] = {
        "GET": Permission.VIEW_ENVIRONMENT,
        "POST": Permission.OPERATE_ENVIRONMENT,
    }

    token: EnrollmentToken
    idempotency_key: str | None

    def get_authenticators(self) -> Any:
        # an enrollment token is no person's: the door for persons would refuse it, and must not open for POST
        return [] if self._is_enrollment() else super().get_authenticators()

    def _is_enrollment(self) -> bool:
        return self.request is not None and self.request.method == "POST"

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        if not self._is_enrollment():
            super().initial(request, *args, **kwargs)
            return
        APIView.initial(self, request, *args, **kwargs)
        environment_id: uuid.UUID = kwargs["environment_id"]
        self.idempotency_key = idempotency_key_of(request)
        self.token = authenticate_enrollment(request, environment_id, self.idempotency_key)
        limits.check_enrollment(self.token.environment_id)
        project = self.token.environment.project
        if (kwargs["org_id"], kwargs["project_id"], environment_id) != (
            project.organization_id,
            project.pk,
            self.token.environment_id,
        ):
            raise NotFound()

    def get(self, request: Request, **_path: uuid.UUID) -> Response:
        rows = selectors.all_in(self.scope)
        filters = {"status": _liveness_filter, "q": text_filter("name", "hostname")}
        return keyset_page(request, rows, agent_body, filters=filters)

    def post(self, request: Request, **_path: uuid.UUID) -> Response:
        given = validated(EnrollIn, request.data)
        enrolled = services.enroll(
            actor=enrollment_principal(self.token),
            token=self.token,
            idempotency_key=self.idempotency_key,
            name=given["name"],
            hostname=given["hostname"],
            reported_labels=given["labels"],
            version=given["version"],
        )
        environment = self.token.environment
        organization_id = environment.project.organization_id
        return Response(
            {
                "agent_id": str(enrolled.agent.pk),
                "name": enrolled.agent.name,
                "api_key": enrolled.api_key.reveal(),
                "org_id": str(organization_id),
                "project_id": str(environment.project_id),
                "environment_id": str(environment.pk),
                "posture": environment.posture,
                "signing_keys": signing.enrollment_key_set(organization_id),
                "heartbeat_seconds": settings.BYTEOR_HEARTBEAT_SECONDS,
            },
            status=201,
            headers={"Cache-Control": "no-store"},
        )


class AgentDetailView(ScopedView):
    """One agent."""

    finds = selectors.get_agent
    permissions: ClassVar[Mapping[str, Permission]] = {
        "GET": Permission.VIEW_ENVIRONMENT,
        "PATCH": Permission.OPERATE_ENVIRONMENT,
        "DELETE": Permission.OPERATE_ENVIRONMENT,
    }

    def _shown(self, request: Request, agent: Agent) -> Response:
        body = agent_body(agent)
        return tagged(request, body, agent_tag(agent, body))

    def get(self, request: Request, agent_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        return self._shown(request, selectors.get_agent(self.scope, agent_id))

    def patch(self, request: Request, agent_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        selectors.get_agent(self.scope, agent_id)
        given = self.read(AgentPatchIn)
        agent = services.update_agent(
            actor=self.principal,
            scope=self.scope,
            agent_id=agent_id,
            name=given.get("name"),
            relabel=(lambda labels: merged_labels(labels, given["labels"])) if "labels" in given else None,
            guard=lambda row: check_if_match(request, row.rev),
        )
        return self._shown(request, agent)

    def delete(self, request: Request, agent_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        selectors.get_agent(self.scope, agent_id)
        services.remove_agent(
            actor=self.principal,
            scope=self.scope,
            agent_id=agent_id,
            force=forced(request),
            guard=lambda row: check_if_match(request, row.rev),
        )
        return no_content()


class RevokeKeyView(ScopedView):
    """End an agent's keys."""

    finds = selectors.get_agent
    permissions: ClassVar[Mapping[str, Permission]] = {"POST": Permission.OPERATE_ENVIRONMENT}

    def post(self, request: Request, agent_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        selectors.get_agent(self.scope, agent_id)
        self.read(EmptyIn)
        agent = services.revoke_agent_key(
            actor=self.principal, scope=self.scope, agent_id=agent_id, force=forced(request)
        )
        return Response(agent_body(agent))
