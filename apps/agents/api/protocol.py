"""What an enrolled agent calls. Every path names the agent whose key it sends."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

from django.conf import settings
from django.http import StreamingHttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from apps.agents import lane
from apps.agents.api.serializers import EmptyIn, HeartbeatIn, ReportIn
from apps.agents.authentication import AgentView
from apps.agents.registry import AgentReport, Running, desired_source
from apps.agents.services import Heartbeat, record_heartbeat, rotate_key
from apps.agents.services.directives import NumberedDirective, answer_body, number_directive, sign_directive
from apps.agents.waiting import await_directive, newer_keys, slots
from apps.core.api import validated
from apps.core.errors import BadRequest, FieldError
from apps.signing import services as signing

LONGEST_WAIT = 30
_CHUNK = 256 * 1024


def whole_parameters(request: Request, **most: int) -> dict[str, int]:
    """The whole-number query parameters named in `most` (0 when not given). BadRequest beyond `most`, or for others."""
    values = dict.fromkeys(most, 0)
    for name in request.query_params:
        given = request.query_params.getlist(name)
        text = given[0]
        if name not in most:
            raise _bad_parameter(name, f"'{name[:64]}' is not known here.")
        if len(given) > 1 or not (text.isascii() and text.isdigit() and len(text) <= 19) or int(text) > most[name]:
            raise _bad_parameter(name, f"One whole number from 0 to {most[name]} is expected.")
        values[name] = int(text)
    return values


def _bad_parameter(name: str, detail: str) -> BadRequest:
    return BadRequest(detail, code="bad_parameter", errors=[FieldError(f"?{name}", "bad_parameter", detail)])


class _DirectiveView(AgentView):
    """Answers with what the agent shall do."""

    def answer(self, request: Request, numbered: NumberedDirective) -> Response:
        signed = sign_directive(self.agent, numbered)
        version = signing.key_set_version(self.agent.environment.project.organization_id)
        prefix = request.path.split("/agents/", 1)[0]
        body = answer_body(self.agent.pk, signed, prefix=prefix, key_set_version=version)
        return Response(body, headers={"Cache-Control": "no-store"})


class HeartbeatView(_DirectiveView):
    """One round trip: what the host says, what it shall do."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self.mark = lane.mark()
        super().initial(request, *args, **kwargs)

    def post(self, request: Request, agent_id: uuid.UUID) -> Response:
        given = validated(HeartbeatIn, request.data)
        health = given["health"] or {}
        heartbeat = Heartbeat(
            status=given["status"],
            version=given["version"],
            running=Running(**given["running"]) if given["running"] else None,
            key_set_version=given["key_set_version"],
            healthy=health.get("ok"),
            health_detail=health.get("detail", ""),
            metrics=given["metrics"],
        )
        remembers = lane.is_open()
        record_heartbeat(agent=self.agent, heartbeat=heartbeat, in_batch=remembers)
        numbered = number_directive(self.agent)
        if remembers and heartbeat.well:
            lane.remember(self.key.sha256, self._standing(heartbeat, numbered))
        return self.answer(request, numbered)

    def _standing(self, heartbeat: Heartbeat, numbered: NumberedDirective) -> lane.Standing:
        organization_id = self.agent.environment.project.organization_id
        return lane.Standing(
            mark=self.mark,
            key_id=self.key.pk,
            credential_id=self.key.public_id,
            actor=str(self.principal.ref),
            agent_id=self.agent.pk,
            organization_id=organization_id,
            environment_id=self.agent.environment_id,
            expires_at=self.key.expires_at,
            key_noted_at=self.key.last_used_at,
            running=heartbeat.running,
            health_detail=heartbeat.health_detail,
            desired=numbered.desired,
            seq=numbered.seq,
            key_set_version=signing.key_set_version(organization_id),
            signer=signing.active_signer(organization_id),
            channels=lane.channels_of(self.agent.pk, organization_id, self.agent.environment_id),
        )


class DeploymentView(_DirectiveView):
    """The waiting poll. With `key_set_version`, a key set above it is news too."""

    def get(self, request: Request, agent_id: uuid.UUID) -> Response:
        asked = whole_parameters(request, wait=LONGEST_WAIT, after=2**63 - 1, key_set_version=2**31 - 1)
        latest: NumberedDirective | None = number_directive(self.agent)
        if latest is not None and (latest.seq > asked["after"] or newer_keys(self.agent, asked["key_set_version"])):
            return self.answer(request, latest)
        if asked["wait"] == 0:
            return Response(status=204)
        with slots.take() as granted:
            if not granted:
                soon = desired_source().has_in_flight(self.agent)
                pause = 1 if soon else settings.BYTEOR_HEARTBEAT_SECONDS
                return Response(status=204, headers={"Retry-After": str(pause)})
            latest = await_directive(self.key, asked["after"], asked["wait"], key_set_version=asked["key_set_version"])
        return self.answer(request, latest) if latest is not None else Response(status=204)


class StatusView(AgentView):
    """How a deployment goes on this host."""

    def post(self, request: Request, agent_id: uuid.UUID, deployment_id: uuid.UUID) -> Response:
        given = validated(ReportIn, request.data)
        report = AgentReport(
            status=given["status"],
            bundle_sha256=given["bundle_sha256"],
            sequence=given["sequence"],
            reason=given["reason"] or "",
            tuning=given["tuning"] or {},
            log_tail=given["log_tail"] or "",
        )
        desired_source().report(agent=self.agent, deployment_id=deployment_id, report=report)
        return Response({"agent_id": str(agent_id), "deployment_id": str(deployment_id), "status": report.status})


class BundleView(AgentView):
    """The archive, to its targets alone."""

    def get(self, request: Request, agent_id: uuid.UUID, deployment_id: uuid.UUID) -> StreamingHttpResponse:
        download = desired_source().bundle_for(self.agent, deployment_id)
        response = StreamingHttpResponse(_Pieces(download.stream), content_type="application/x-tar")
        response["Content-Length"] = str(download.size)
        response["Content-Disposition"] = f'attachment; filename="{download.sha256}.tar"'
        response["X-Content-Type-Options"] = "nosniff"
        response["Cache-Control"] = "private, no-store"
        response["ETag"] = f'"{download.sha256}"'
        return response


class _Pieces:
    """A stream in pieces. It is closed with the answer, also when nobody read a byte of it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self._stream.read(_CHUNK), b"")

    def close(self) -> None:
        self._stream.close()


class SigningKeysView(AgentView):
    """The key sets above the one the agent knows, oldest first."""

    def get(self, request: Request, agent_id: uuid.UUID) -> Response:
        after = whole_parameters(request, after=2**31 - 1)["after"]
        organization_id = self.agent.environment.project.organization_id
        return Response(signing.key_set(organization_id, after=after))


class RotateKeyView(AgentView):
    """A new key for itself."""

    def post(self, request: Request, agent_id: uuid.UUID) -> Response:
        validated(EmptyIn, request.data)
        text = rotate_key(actor=self.principal, agent=self.agent, key=self.key)
        body: dict[str, Any] = {"agent_id": str(agent_id), "api_key": text.reveal()}
        return Response(body, headers={"Cache-Control": "no-store"})
