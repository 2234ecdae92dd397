"""Problem documents (RFC 9457): the translation of errors to HTTP responses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import structlog
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse
from django_fsm import ConcurrentTransition, TransitionNotAllowed
from rest_framework import exceptions as drf
from rest_framework.response import Response

from apps.core import context
from apps.core.db import DATABASE_AWAY, is_full, is_statement_timeout, reason
from apps.core.errors import (
    BadRequest,
    Conflict,
    FieldError,
    Forbidden,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    ServiceError,
    StorageFull,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
)

CONTENT_TYPE = "application/problem+json"

log = structlog.get_logger(__name__)


class InternalError(ServiceError):
    """Unexpected server error. Its response has no details."""

    status = 500
    title = "Internal error"
    code = "internal_error"


MOST_ERRORS = 50
"""Maximum errors that a problem document lists, to keep the response small."""
MOST_ECHO_CHARACTERS = 64
"""Maximum characters of client input that a response repeats."""
MOST_TEXT_CHARACTERS = 500
"""Maximum characters of a path, pointer or sentence in a problem document."""


def shortened(text: str, most: int = MOST_ECHO_CHARACTERS) -> str:
    """`text`, or its first `most` characters and an ellipsis."""
    return text if len(text) <= most else f"{text[:most]}…"


def _bounded(error: FieldError) -> dict[str, str]:
    return {name: shortened(text, MOST_TEXT_CHARACTERS) for name, text in error.as_dict().items()}


def document(error: ServiceError, instance: str) -> dict[str, object]:
    """The problem document of `error` for the request path `instance`."""
    return {
        "type": f"urn:byteor:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": shortened(error.detail, MOST_TEXT_CHARACTERS),
        "instance": shortened(instance, MOST_TEXT_CHARACTERS),
        "code": error.code,
        "request_id": context.current().request_id,
        "errors": [_bounded(e) for e in error.errors[:MOST_ERRORS]],
        **error.extra,
    }


def problem_response(error: ServiceError, instance: str) -> HttpResponse:
    """A rendered HTTP response with `error` as `application/problem+json`."""
    body = json.dumps(document(error, instance), ensure_ascii=False)
    return HttpResponse(body, status=error.status, content_type=CONTENT_TYPE, headers=error.headers)


def _pointer_parts(detail: Any, pointer: str) -> Iterable[FieldError]:
    if isinstance(detail, Mapping):
        for key, value in detail.items():
            name = shortened(str(key)).replace("~", "~0").replace("/", "~1")
            here = pointer if key == "non_field_errors" else f"{pointer}/{name}"
            yield from _pointer_parts(value, here)
    elif isinstance(detail, list | tuple):
        for index, item in enumerate(detail):
            nested = isinstance(item, Mapping | list | tuple)
            yield from _pointer_parts(item, f"{pointer}/{index}" if nested else pointer)
    else:
        yield FieldError(pointer, str(getattr(detail, "code", "invalid")), str(detail))


def as_service_error(error: Exception) -> ServiceError | None:
    """Translate `error` to a ServiceError; None for an error that is not the client's."""
    match error:
        case ServiceError():
            return error
        case drf.ValidationError():
            fields = tuple(_pointer_parts(error.detail, ""))
            return BadRequest("The input is not valid.", code="invalid_input", errors=fields)
        case drf.ParseError():
            return BadRequest(str(error.detail), code="malformed_body")
        case drf.NotAuthenticated() | drf.AuthenticationFailed():
            return Unauthenticated("Authentication credentials were not provided.", code="not_authenticated")
        case drf.MethodNotAllowed():
            return MethodNotAllowed(str(error.detail))
        case drf.UnsupportedMediaType():
            return UnsupportedMediaType(str(error.detail))
        case drf.NotAcceptable():
            return NotAcceptable("Only application/json responses are available.")
        case drf.Throttled():
            return TooManyRequests(retry_after=int(getattr(error, "wait", None) or 1))
        case drf.PermissionDenied() | PermissionDenied():
            return Forbidden(str(error) or "")
        case drf.NotFound() | Http404():
            return NotFound()
        case TransitionNotAllowed() | ConcurrentTransition():
            return Conflict("The present state does not allow this operation.", code="invalid_transition")
        case RequestDataTooBig():
            return TooLarge()
        case SuspiciousOperation():
            return BadRequest("The request is not acceptable.")
    return _as_unavailable(error)


def _as_unavailable(error: Exception) -> ServiceError | None:
    """Translate and log an unavailable dependency or full storage; None for any other error."""
    known: ServiceError | None = None
    if is_full(error):
        known = StorageFull("Storage is full; nothing was stored.")
    elif is_statement_timeout(error):
        known = Unavailable("The request took too long. Request less data, or try again.", code="query_timeout")
    elif isinstance(error, DATABASE_AWAY):
        known = Unavailable("The database is unavailable; try again.", code="database_unavailable")
    if known is not None:
        log.error("request failed: dependency unavailable", code=known.code, reason=reason(error))
    return known


def exception_handler(error: Exception, info: Mapping[str, Any]) -> Response | None:
    """DRF exception handler: answers every error with a problem document, unexpected ones with 500 and no details."""
    request = info["request"]
    known = as_service_error(error)
    if known is None:
        log.error("unhandled error", path=request.path, exc_info=error)
        known = InternalError("An internal error occurred.")
    body = document(known, request.path)
    response = Response(body, status=known.status, content_type=CONTENT_TYPE, headers=known.headers)
    response.data_is_problem = True  # type: ignore[attr-defined]
    return response


def is_api_path(path: str) -> bool:
    """True for API paths: their errors are problem documents instead of pages."""
    return path.startswith(("/api/", "/v1/")) or path in ("/api", "/v1")


def is_api_host(request: HttpRequest) -> bool:
    """True on hosts named `api.*`, in any case: they serve the API alone, and accept no sessions."""
    return request.get_host().lower().startswith("api.")


def _answer(request: HttpRequest, error: ServiceError, template: str) -> HttpResponse:
    if is_api_path(request.path):
        return problem_response(error, request.path)
    from django.shortcuts import render

    page = {"title": HTTPStatus(error.status).phrase, "detail": error.detail, "status": error.status}
    return render(request, template, {**page, "request_id": context.current().request_id}, status=error.status)


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler400."""
    known = as_service_error(exception) if exception else None
    return _answer(request, known or BadRequest(), "error.html")


def permission_denied(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler403."""
    return _answer(request, Forbidden(), "error.html")


def page_not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler404. Missing and invisible resources get the same response."""
    return _answer(request, NotFound(), "error.html")


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500; 503 or 507 when a dependency is unavailable or storage is full.

    The latter are plain text, because the error page reads the signed-in user from the database.
    """
    error = sys.exception()
    known = _as_unavailable(error) if isinstance(error, Exception) else None
    if known is None:
        return _answer(request, InternalError("An internal error occurred."), "error.html")
    if is_api_path(request.path):
        return problem_response(known, request.path)
    text = f"{known.title}. {known.detail}\n"
    return HttpResponse(text, status=known.status, content_type="text/plain", headers=known.headers)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Respond to a request without a valid CSRF token (`settings.CSRF_FAILURE_VIEW`)."""
    error = Forbidden(
        "The form has expired or came from another site. Reload the page and try again.", code="csrf_failed"
    )
    return _answer(request, error, "error.html")
