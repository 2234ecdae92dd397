"""Middleware for every request: request id, body size, hosts, and problem documents for errors outside of views."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from csp.constants import HEADER
from csp.utils import build_policy
from django.conf import settings
from django.core.handlers.exception import response_for_exception
from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect
from django.http.response import HttpResponseBase
from django.middleware import common

from apps.api import problems
from apps.api.problems import is_api_host, is_api_path, problem_response
from apps.core import context, waits
from apps.core.context import RequestContext
from apps.core.errors import BadRequest, Forbidden, LengthRequired, NotFound, ServiceError, TooLarge
from apps.core.ids import new_id
from apps.core.visible import visible_page

log = structlog.get_logger(__name__)

_SANE_ID = re.compile(r"\A[A-Za-z0-9._:-]{8,128}\Z")

GetResponse = Callable[[HttpRequest], HttpResponseBase]


class RequestIdMiddleware:
    """Sets the request id (the client's `X-Request-Id` if valid), and adds it to the response and the logs."""

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
            response = self._respond(request)
            # the route, not the path: an invitation's path contains its secret
            route = request.resolver_match.route if request.resolver_match else None
            bound = structlog.contextvars.get_contextvars()

            def write(status: int) -> None:
                spent = int((time.monotonic() - started) * 1000)
                log.info("request", method=request.method, route=route, status=status, ms=spent, **bound)

            if waits.is_requested(request):
                waits.log_when_answered(request, write)
            else:
                write(response.status_code)
        structlog.contextvars.clear_contextvars()
        response["X-Request-Id"] = request_id
        return response

    def _respond(self, request: HttpRequest) -> HttpResponseBase:
        """The response; that of an internal error if something could not be recorded at the end of the request."""
        response = self.get_response(request)
        try:
            context.finish()
        except (
            Exception
        ) as error:  # answered here, because outside of this middleware the answer would have no request id
            response.close()
            return response_for_exception(request, error)
        return response


class ContentSecurityPolicyMiddleware:
    """Adds the content security policy of the settings, as django-csp writes it, to every response.

    It is the same for all, without nonces, so it is written once; django-csp's own middleware writes it for each response.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self._policy = build_policy()

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        response[HEADER] = self._policy
        return response


class HiddenCharactersMiddleware:
    """Makes hidden characters visible in every HTML response (`apps.core.visible`)."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        if isinstance(response, HttpResponse) and response.get("Content-Type", "").startswith("text/html"):
            page = response.content.decode(response.charset)
            shown = visible_page(page)
            if shown is not page:
                response.content = shown.encode(response.charset)
        return response


def body_refusal(environ: Mapping[str, Any]) -> ServiceError | None:
    """The error for a request body that is refused by its headers alone; None when it is accepted.

    411 without a length, 413 over `settings.BYTEOR_MAX_BODY_BYTES` (4 MiB). The server truncates a body that is longer than
    its Content-Length.
    """
    if environ.get("HTTP_TRANSFER_ENCODING"):
        return LengthRequired("Send the length of the body with Content-Length.")
    length = str(environ.get("CONTENT_LENGTH") or "0")
    if not (length.isascii() and length.isdigit()):
        return LengthRequired("Content-Length is not a number.")
    cap = int(settings.BYTEOR_MAX_BODY_BYTES)
    # a number of so many digits is over any cap, and int() refuses longer ones
    if len(length) > 18 or int(length) > cap:
        return TooLarge(f"A body can have at most {cap} bytes.")
    return None


class BodyLimitMiddleware:
    """Refuses a body by its headers, before reading it. The server applies the same rule (`body_refusal`)."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        error = body_refusal(request.META)
        if error is not None:
            if is_api_path(request.path):
                return problem_response(error, request.path)
            return HttpResponse(f"{error.detail}\n", status=error.status, content_type="text/plain; charset=utf-8")
        return self.get_response(request)


class NulMiddleware:
    """Refuses NUL characters in a path (404), a query string or a form (400), because PostgreSQL can't store them.

    The API validates its own parameters and bodies, in its order of checks.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if "\x00" in request.path:
            return problems.page_not_found(request)
        if "%00" in request.META.get("QUERY_STRING", "") and not is_api_path(request.path):
            return problems.bad_request(request, BadRequest("A parameter contains a NUL character."))
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> HttpResponseBase | None:
        """Check the form, which the CSRF check has already read."""
        if request.method == "POST" and not is_api_path(request.path):
            for name, values in request.POST.lists():
                if "\x00" in name or any("\x00" in str(value) for value in values):
                    return problems.bad_request(request, BadRequest("A field contains a NUL character."))
        return None


HEALTH_PATHS = ("/healthz", "/readyz", "/metrics")
"""Paths of probes. These send the process's address as Host, or none, and use plain http."""


class CommonMiddleware(common.CommonMiddleware):
    """Django's CommonMiddleware, which checks the Host header; skipped for probes."""

    def process_request(self, request: HttpRequest) -> HttpResponsePermanentRedirect | None:
        return None if request.path in HEALTH_PATHS else super().process_request(request)


class ApiHttpsMiddleware:
    """Refuses API requests over plain http where https is required.

    They are not redirected, because the credential was sent in clear text and a POST would become a GET.
    `SECURE_REDIRECT_EXEMPT` excludes these paths from Django's redirect.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if settings.SECURE_SSL_REDIRECT and is_api_path(request.path) and not request.is_secure():
            error = Forbidden("Use https. Replace the credential, which was sent in clear text.", code="https_required")
            return problem_response(error, request.path)
        return self.get_response(request)


class HostRulesMiddleware:
    """Separates hosts in hosted profiles: `api.*` serves `/v1` only, and other hosts serve the rest.

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
        if request.path in HEALTH_PATHS:
            return True
        if is_api_host(request):
            return is_api_path(request.path)
        return not request.path.startswith("/v1/")
