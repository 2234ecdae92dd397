"""API through which a host that takes upgrades asks for a newer agent program."""

from __future__ import annotations

import hashlib

from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from apps.agents.api.documents import ReleaseDocument
from apps.agents.registry import desired_source
from apps.agents.services import allow_upgrade
from apps.api.base import AgentView
from apps.api.operations import operation
from apps.core import clock
from apps.core.errors import NotFound
from apps.runtime import trust
from apps.runtime.agent import VERSION
from apps.runtime.agent.build import build_pyz
from apps.signing import services as signing

RELEASE_PATH = "/release/byteor-agent.pyz"
BUSY_SECONDS = 60


class ReleaseView(AgentView):
    """Offer of the agent program."""

    @operation(answer=ReleaseDocument, status=(200, 204))
    def get(self, request: Request) -> Response:
        """Return the offered agent program, signed with the organization's active key and valid for ten minutes.

        204 with `Retry-After` while a deployment with this agent as a target is in flight. 204 also while the
        environment's `agent_upgrade_percent` does not include this agent.
        """
        if desired_source().has_in_flight(self.agent):
            return Response(status=204, headers={"Retry-After": str(BUSY_SECONDS)})
        if not allow_upgrade(agent=self.agent, version=VERSION):
            return Response(status=204)
        program, now = build_pyz(), clock.now_ms()
        release = trust.AgentRelease(
            version=VERSION,
            sha256=hashlib.sha256(program).hexdigest(),
            size=len(program),
            path=RELEASE_PATH,
            issued_at=now,
            expires_at=now + trust.RELEASE_LIFE_MS,
        )
        signer = signing.active_signer(self.agent.environment.project.organization_id)
        return Response({"envelope": trust.sign_release(release, signer)}, headers={"Cache-Control": "no-store"})


class ReleaseFileView(AgentView):
    """The agent program."""

    @operation()
    def get(self, request: Request) -> HttpResponse:
        """Return the bytes of the offered program. 404 to an agent to which it is not offered."""
        if self.agent.upgrade_allowed_version != VERSION:
            raise NotFound()
        response = HttpResponse(build_pyz(), content_type="application/zip")
        response["X-Content-Type-Options"] = "nosniff"
        response["Cache-Control"] = "private, no-store"
        return response
