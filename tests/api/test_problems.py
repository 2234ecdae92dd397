"""What each kind of refusal is answered with."""

from __future__ import annotations

import pytest
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import OperationalError
from django.http import Http404
from django_fsm import TransitionNotAllowed
from rest_framework import exceptions as drf

from apps.api.problems import as_service_error, document
from apps.core import errors

KINDS: list[tuple[errors.ServiceError, int, str]] = [
    (errors.BadRequest(), 400, "bad_request"),
    (errors.Unauthenticated(), 401, "invalid_token"),
    (errors.Forbidden(), 403, "permission_denied"),
    (errors.NotFound(), 404, "not_found"),
    (errors.MethodNotAllowed(), 405, "method_not_allowed"),
    (errors.NotAcceptable(), 406, "not_acceptable"),
    (errors.RequestTimeout(), 408, "request_timeout"),
    (errors.Conflict(), 409, "conflict"),
    (errors.StateConflict("a", "b", ["d", "c"]), 409, "invalid_transition"),
    (errors.LengthRequired(), 411, "length_required"),
    (errors.PreconditionFailed(), 412, "precondition_failed"),
    (errors.TooLarge(), 413, "body_too_large"),
    (errors.UnsupportedMediaType(), 415, "unsupported_media_type"),
    (errors.Unprocessable(), 422, "unprocessable"),
    (errors.PreconditionRequired(), 428, "precondition_required"),
    (errors.TooManyRequests(), 429, "rate_limited"),
    (errors.Unavailable(), 503, "unavailable"),
    (errors.StorageUnavailable("disk 7 is gone"), 503, "storage_unavailable"),
    (errors.StorageFull(), 507, "storage_full"),
]


@pytest.mark.parametrize(("error", "status", "code"), KINDS, ids=lambda value: getattr(value, "code", None))
def test_each_kind_of_error_has_its_status_and_code(error: errors.ServiceError, status: int, code: str) -> None:
    body = document(error, "/api/v1/x")
    assert (body["status"], body["code"], body["type"]) == (status, code, f"urn:byteor:problem:{code}")
    assert body["title"]
    assert body["detail"]
    assert "disk 7" not in str(body)
    waits = {"429", "503"} & {str(status)}
    assert ("Retry-After" in error.headers) == bool(waits)


def test_every_kind_of_error_is_in_the_table() -> None:
    def below(kind: type[errors.ServiceError]) -> set[type[errors.ServiceError]]:
        return {kind, *(each for sub in kind.__subclasses__() for each in below(sub))}

    here = {kind for kind in below(errors.ServiceError) if kind.__module__ == errors.__name__}
    assert here - {errors.ServiceError} == {type(error) for error, _, _ in KINDS}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (drf.ParseError("half a body"), 400, "malformed_body"),
        (drf.ValidationError({"a": ["is needed"]}), 400, "invalid_input"),
        (drf.NotAuthenticated(), 401, "not_authenticated"),
        (drf.AuthenticationFailed(), 401, "not_authenticated"),
        (drf.PermissionDenied(), 403, "permission_denied"),
        (PermissionDenied(), 403, "permission_denied"),
        (drf.NotFound(), 404, "not_found"),
        (Http404(), 404, "not_found"),
        (drf.MethodNotAllowed("PUT"), 405, "method_not_allowed"),
        (drf.NotAcceptable(), 406, "not_acceptable"),
        (TransitionNotAllowed(), 409, "invalid_transition"),
        (RequestDataTooBig(), 413, "body_too_large"),
        (drf.UnsupportedMediaType("text/plain"), 415, "unsupported_media_type"),
        (drf.Throttled(7), 429, "rate_limited"),
        (SuspiciousOperation(), 400, "bad_request"),
        (OperationalError("the server is gone"), 503, "database_unavailable"),
    ],
)
def test_an_error_of_a_framework_becomes_one_of_ours(error: Exception, status: int, code: str) -> None:
    known = as_service_error(error)
    assert known is not None
    assert (known.status, known.code) == (status, code)


def test_any_other_error_is_nobodys_fault_but_ours() -> None:
    assert as_service_error(ValueError("a bug")) is None
