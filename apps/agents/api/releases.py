"""What a host that takes upgrades asks: is there a newer agent, and may I have it?"""

from __future__ import annotations

import hashlib
import uuid

from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from apps.agents.authentication import AgentView
from apps.agents.registry import desired_source
from apps.core import clock
from apps.runtime import trust
from apps.runtime.agent import VERSION
from apps.runtime.agent.build import build_pyz
from apps.signing import services as signing

RELEASE_PATH = "/release/byteor-agent.pyz"
BUSY_SECONDS = 60


class ReleaseView(AgentView):
    """The agent that this control plane serves, signed by the organization's active key and good for ten minutes.

    204 with `Retry-After` while a deployment with this agent as a target is in flight: not now.
    """

    def get(self, request: Request, agent_id: uuid.UUID) -> Response:
        if desired_source().has_in_flight(self.agent):
            return Response(status=204, headers={"Retry-After": str(BUSY_SECONDS)})
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
    """Its bytes."""

    def get(self, request: Request, agent_id: uuid.UUID) -> HttpResponse:
        response = HttpResponse(build_pyz(), content_type="application/zip")
        response["X-Content-Type-Options"] = "nosniff"
        response["Cache-Control"] = "private, no-store"
        return response
