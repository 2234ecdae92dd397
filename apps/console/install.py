"""Downloads of the agent and its installation script."""

from __future__ import annotations

import hashlib

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from apps.runtime.agent.build import build_pyz, render_install_sh


@require_safe
def agent_pyz(request: HttpRequest) -> HttpResponse:
    """`/install/byteor-agent.pyz`."""
    data = build_pyz()
    response = HttpResponse(data, content_type="application/zip")
    response["Content-Disposition"] = 'attachment; filename="byteor-agent.pyz"'
    response["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
    return response


@require_safe
def install_sh(request: HttpRequest) -> HttpResponse:
    """Serve `/install.sh`, which pins the agent's digest. Its URL comes from the settings, never from the Host header."""
    digest = hashlib.sha256(build_pyz()).hexdigest()
    text = render_install_sh(base_url=settings.BYTEOR_UI_BASE_URL, pyz_sha256=digest)
    return HttpResponse(text, content_type="text/x-shellscript; charset=utf-8")
