"""Problem documents (RFC 9457): the one place where errors become HTTP answers."""

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
from apps.core.db import DATABASE_AWAY, is_full, reason
from apps.core.errors import (
    BadRequest,
    Conflict,
    FieldError,
    Forbidden,
    MethodNotAllowed,
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
    """Something of ours broke. Says nothing about what."""

    status = 500
    title = "Internal error"
    code = "internal_error"


def document(error: ServiceError, instance: str) -> dict[str, object]:
    """The problem document of `error` for the request path `instance`."""
    return {
        "type": f"urn:byteor:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
        "code": error.code,
        "request_id": context.current().request_id,
        "errors": [e.as_dict() for e in error.errors],
        **error.extra,
    }


def problem_response(error: ServiceError, instance: str) -> HttpResponse:
    """A finished HTTP answer that carries `error` as `application/problem+json`."""
    response = HttpResponse(
        json.dumps(document(error, instance), ensure_ascii=False), status=error.status, content_type=CONTENT_TYPE
    )
    for name, value in error.headers.items():
        response[name] = value
    return response


def _pointer_parts(detail: Any, pointer: str) -> Iterable[FieldError]:
    if isinstance(detail, Mapping):
        for key, value in detail.items():
            name = str(key).replace("~", "~0").replace("/", "~1")
            here = pointer if key == "non_field_errors" else f"{pointer}/{name}"
            yield from _pointer_parts(value, here)
    elif isinstance(detail, list | tuple):
        for index, item in enumerate(detail):
            nested = isinstance(item, Mapping | list | tuple)
            yield from _pointer_parts(item, f"{pointer}/{index}" if nested else pointer)
    else:
        yield FieldError(pointer, str(getattr(detail, "code", "invalid")), str(detail))


def as_service_error(error: Exception) -> ServiceError | None:
    """`error` as one of ours, or None when it is nothing a client could have caused."""
    match error:
        case ServiceError():
            return error
        case drf.ValidationError():
            fields = tuple(_pointer_parts(error.detail, ""))
            return BadRequest("The input is not valid.", code="invalid_input", errors=fields)
        case drf.ParseError():
            return BadRequest(str(error.detail), code="malformed_body")
        case drf.NotAuthenticated() | drf.AuthenticationFailed():
            return Unauthenticated("Send a credential.", code="not_authenticated")
        case drf.MethodNotAllowed():
            return MethodNotAllowed(str(error.detail))
        case drf.UnsupportedMediaType():
            return UnsupportedMediaType(str(error.detail))
        case drf.NotAcceptable():
            return BadRequest("Only application/json can be answered here.", code="not_acceptable")
        case drf.Throttled():
            return TooManyRequests(retry_after=int(getattr(error, "wait", None) or 1))
        case drf.PermissionDenied() | PermissionDenied():
            return Forbidden(str(error) or "")
        case drf.NotFound() | Http404():
            return NotFound()
        case TransitionNotAllowed() | ConcurrentTransition():
            return Conflict("The present state does not allow it.", code="invalid_transition")
        case RequestDataTooBig():
            return TooLarge()
        case SuspiciousOperation():
            return BadRequest("The request is not acceptable.")
    return _as_unavailable(error)


def _as_unavailable(error: Exception) -> ServiceError | None:
    """What we stand on being away or full, which is no fault of the code; says so in the log."""
    known: ServiceError | None = None
    if is_full(error):
        known = StorageFull("No room is left to store this. Nothing of it was kept.")
    elif isinstance(error, DATABASE_AWAY):
        known = Unavailable("The database does not answer just now. Try again.", code="database_unavailable")
    if known is not None:
        log.error("can't serve a request", code=known.code, reason=reason(error))
    return known


def exception_handler(error: Exception, info: Mapping[str, Any]) -> Response | None:
    """DRF's exception hook: every error leaves as a problem document, unknown ones as a bare 500."""
    request = info["request"]
    known = as_service_error(error)
    if known is None:
        log.error("unhandled error", path=request.path, exc_info=error)
        known = InternalError("Something went wrong on our side.")
    response = Response(document(known, request.path), status=known.status, content_type=CONTENT_TYPE)
    for name, value in known.headers.items():
        response[name] = value
    response.data_is_problem = True  # type: ignore[attr-defined]
    return response


def is_api_path(path: str) -> bool:
    """True where clients are programs: they get problem documents instead of pages."""
    return path.startswith(("/api/", "/v1/")) or path in ("/api", "/v1")


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
    """Django's handler404: the same words for what never was and what may not be seen."""
    return _answer(request, NotFound(), "error.html")


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500, and 503 or 507 when what we stand on is away or full: without the page around it, which asks
    the database who is signed in."""
    error = sys.exception()
    known = _as_unavailable(error) if isinstance(error, Exception) else None
    if known is None:
        return _answer(request, InternalError("Something went wrong on our side."), "error.html")
    if is_api_path(request.path):
        return problem_response(known, request.path)
    response = HttpResponse(f"{known.title}. {known.detail}\n", status=known.status, content_type="text/plain")
    for name, value in known.headers.items():
        response[name] = value
    return response


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """What a request without a valid CSRF token gets (settings.CSRF_FAILURE_VIEW)."""
    error = Forbidden(
        "The form has expired or came from another site. Reload the page and try again.", code="csrf_failed"
    )
    return _answer(request, error, "error.html")
