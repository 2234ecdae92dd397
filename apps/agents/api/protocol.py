"""API for enrolled agents. Every path contains the id of the agent that owns the key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from django.http import StreamingHttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from apps.agents.api.documents import DirectiveDocument, KeySetDocument, ReportDocument, RotatedKeyDocument
from apps.agents.api.serializers import AgentEmptyInput, HeartbeatInput, ReportInput
from apps.agents.api.waiting import Poll, wait_for_directive, wait_ticket
from apps.agents.heartbeat_cache import receive_heartbeat
from apps.agents.registry import AgentReport, Running, desired_source
from apps.agents.services import Heartbeat, rotate_key
from apps.agents.services.directives import NumberedDirective, directive_document, number_directive, sign_directive
from apps.api.authentication.agents import HeartbeatAuthentication
from apps.api.base import AgentView
from apps.api.operations import operation
from apps.api.parameters import integer
from apps.core import waits
from apps.signing import services as signing

LONGEST_WAIT = 30
POLL_PARAMETERS = {
    "wait": integer(LONGEST_WAIT),
    "after": integer(2**63 - 1),
    "key_set_version": integer(2**31 - 1),
}
_CHUNK = 256 * 1024


def prefix_of(request: Request) -> str:
    """Return the API prefix of the request: `/api/v1` or `/v1`."""
    return request.path.split("/agents/", 1)[0]


class _DirectiveView(AgentView):
    """Base of the views that answer with a directive."""

    def answer(self, request: Request, numbered: NumberedDirective) -> Response:
        signed, version = sign_directive(self.agent, numbered, key_set_version=self.key_set_version)
        body = directive_document(self.agent.pk, signed, prefix=prefix_of(request), key_set_version=version)
        return Response(body)


class HeartbeatView(_DirectiveView):
    """Heartbeats of an agent."""

    authentication_classes = [HeartbeatAuthentication]
    leases_slots = True

    @operation(body=HeartbeatInput, answer=DirectiveDocument)
    def post(self, request: Request) -> Response:
        """Report the host's state. Returns the signed directive for the agent.

        With `Directive-Seq`, the number of the last directive that the agent has seen, an older one is never returned.
        """
        given = self.given
        health = given["health"] or {}
        heartbeat = Heartbeat(
            status=given["status"],
            version=given["version"],
            running=Running(**given["running"]) if given["running"] else None,
            key_set_version=given["key_set_version"],
            healthy=health.get("ok"),
            health_detail=health.get("detail", ""),
            metrics=given["metrics"],
            start_id=given["start_id"],
        )
        return self.answer(request, receive_heartbeat(self.key, heartbeat, seen_seq=_seen_seq(request)))


def _seen_seq(request: Request) -> int:
    text = request.headers.get("Directive-Seq", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 19 else 0


class DeploymentView(_DirectiveView):
    """Long poll for directives."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self.seen = wait_ticket(kwargs["agent_id"])
        super().initial(request, *args, **kwargs)

    @operation(parameters=POLL_PARAMETERS, answer=DirectiveDocument, status=(200, 204))
    def get(self, request: Request) -> Response:
        """Return the directive with a number above `after`, waiting up to `wait` seconds, or 204 if there is none.

        With `key_set_version`, a newer key set also ends the wait. At most two polls of an agent wait; a further one is
        answered 204 at once, with `Retry-After`.
        """
        query = self.query
        poll = Poll(self.agent.pk, self.key.sha256, query["after"], query["key_set_version"], prefix_of(request))
        latest = number_directive(self.agent, just_read=True)
        if poll.is_news(latest.seq, self.key_set_version):
            return self.answer(request, latest)
        answer = Response(status=204)
        if query["wait"]:
            wait = wait_for_directive(poll, query["wait"], seen=self.seen)
            if not waits.request_wait(request, wait):
                answer["Retry-After"] = str(wait.retry_after)
        return answer


class StatusView(AgentView):
    """Status reports of an agent."""

    def find(self) -> None:
        desired_source().require_target(self.agent, self.kwargs["deployment_id"])

    @operation(body=ReportInput, answer=ReportDocument, errors=("not_wanted", "already_settled"))
    def post(self, request: Request) -> Response:
        """Report the status of a deployment on this host."""
        given, deployment_id = self.given, self.kwargs["deployment_id"]
        report = AgentReport(
            status=given["status"],
            bundle_sha256=given["bundle_sha256"],
            sequence=given["sequence"],
            reason=given["reason"] or "",
            tuning=given["tuning"] or {},
            log_tail=given["log_tail"] or "",
        )
        desired_source().report(agent=self.agent, deployment_id=deployment_id, report=report)
        return Response(
            ReportDocument(agent_id=str(self.agent.pk), deployment_id=str(deployment_id), status=report.status)
        )


class BundleView(AgentView):
    """Bundles for agents."""

    @operation(errors=("signing_key_revoked", "not_wanted"))
    def get(self, request: Request) -> StreamingHttpResponse:
        """Return the archive (tar) of a deployment's bundle. 404 for an agent that is not a target."""
        download = desired_source().bundle_for(self.agent, self.kwargs["deployment_id"])
        response = StreamingHttpResponse(_Pieces(download.stream), content_type="application/x-tar")
        response["Content-Length"] = str(download.size)
        response["Content-Disposition"] = f'attachment; filename="{download.sha256}.tar"'
        response["X-Content-Type-Options"] = "nosniff"
        response["ETag"] = f'"{download.sha256}"'
        return response


class _Pieces:
    """A stream in chunks. It is closed with the response, also if no byte was read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self._stream.read(_CHUNK), b"")

    def close(self) -> None:
        self._stream.close()


class SigningKeysView(AgentView):
    """Key sets for agents."""

    @operation(parameters={"after": integer(2**31 - 1)}, answer=KeySetDocument)
    def get(self, request: Request) -> Response:
        """List the key sets above the agent's own version, oldest first."""
        organization_id = self.agent.environment.project.organization_id
        return Response(signing.key_set(organization_id, after=self.query["after"]))


class RotateKeyView(AgentView):
    """Rotation of an agent's key."""

    @operation(body=AgentEmptyInput, answer=RotatedKeyDocument, errors=("already_rotated", "key_replaced"))
    def post(self, request: Request) -> Response:
        """Create a new key for the calling agent."""
        text = rotate_key(actor=self.principal, agent=self.agent, key=self.key)
        return Response(RotatedKeyDocument(agent_id=str(self.agent.pk), api_key=text.reveal()))
