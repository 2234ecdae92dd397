"""Around every request: its id, the size of its body, and problem documents for what escapes a view."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import ClassVar

import structlog
from csp.constants import HEADER
from csp.middleware import CSPMiddleware
from csp.utils import build_policy
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from apps.core import context
from apps.core.context import RequestContext
from apps.core.errors import LengthRequired, NotFound, ServiceError, TooLarge
from apps.core.ids import new_id
from apps.core.problems import is_api_path, problem_response

log = structlog.get_logger(__name__)

_SANE_ID = re.compile(r"\A[A-Za-z0-9._:-]{8,128}\Z")

GetResponse = Callable[[HttpRequest], HttpResponseBase]


class RequestIdMiddleware:
    """Gives the request an id (the caller's `X-Request-Id` when it is a sane one), puts it on the response and in logs."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        given = request.headers.get("X-Request-Id", "")
        request_id = given if _SANE_ID.match(given) else str(new_id())
        serving = RequestContext(request_id=request_id, ip=str(request.META.get("REMOTE_ADDR") or ""))
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.monotonic()
        with context.serving(serving):
            response = self.get_response(request)
            # the route, not the path: an invitation's path holds its secret
            route = request.resolver_match.route if request.resolver_match else None
            spent = int((time.monotonic() - started) * 1000)
            log.info("request", method=request.method, route=route, status=response.status_code, ms=spent)
        structlog.contextvars.clear_contextvars()
        response["X-Request-Id"] = request_id
        return response


class ContentPolicyMiddleware(CSPMiddleware):
    """The content security policy of the settings, written once and not for every answer. A view that asks for one of its
    own (the library's decorators, a nonce) still gets it."""

    own: ClassVar[tuple[str, ...]] = ("_csp_config", "_csp_update", "_csp_replace", "_csp_exempt")

    def __init__(self, get_response: GetResponse) -> None:
        super().__init__(get_response)
        self.policy: str = build_policy()

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        said = vars(response)
        if getattr(request, "_csp_nonce", None) is not None or any(name in said for name in self.own):
            return super().process_response(request, response)
        if HEADER not in response:
            response[HEADER] = self.policy
        return response


class BodyLimitMiddleware:
    """Refuses a body by its length before a byte of it is read: 413 over the cap, 411 when the length is not said.

    The cap is `settings.BYTEOR_MAX_BODY_BYTES` (4 MiB). A body that is longer than its Content-Length is cut there by
    the WSGI layer, so a length that lies costs nothing.
    """

    default_cap: ClassVar[int] = 4 * 1024 * 1024

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        error = self._refusal(request)
        if error is not None:
            if is_api_path(request.path):
                return problem_response(error, request.path)
            return HttpResponse(f"{error.detail}\n", status=error.status, content_type="text/plain; charset=utf-8")
        return self.get_response(request)

    def _refusal(self, request: HttpRequest) -> ServiceError | None:
        if request.headers.get("Transfer-Encoding"):
            return LengthRequired("Say the length of the body with Content-Length.")
        length = request.META.get("CONTENT_LENGTH") or "0"
        if not (str(length).isascii() and str(length).isdigit()):
            return LengthRequired("Content-Length is not a number.")
        cap = int(getattr(settings, "BYTEOR_MAX_BODY_BYTES", self.default_cap))
        if int(length) > cap:
            return TooLarge(f"A body here has at most {cap} bytes.")
        return None


class HostRulesMiddleware:
    """In hosted profiles each host answers for its own: `/v1` and nothing of the console on `api.*`, the rest elsewhere.

    The local profile serves everything on every host.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if settings.BYTEOR_HOSTED and not self._belongs(request):
            if is_api_path(request.path):
                return problem_response(NotFound(), request.path)
            return HttpResponse("Not found\n", status=404, content_type="text/plain; charset=utf-8")
        return self.get_response(request)

    def _belongs(self, request: HttpRequest) -> bool:
        if request.path in ("/healthz", "/readyz", "/metrics"):
            return True
        if request.get_host().startswith("api."):
            return is_api_path(request.path)
        return not request.path.startswith("/v1/")
