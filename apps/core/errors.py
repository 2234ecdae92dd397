"""The errors that rules raise. One place (`apps.core.problems`) turns them into RFC 9457 documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong part of an input: a JSON pointer (RFC 6901), a stable code, a sentence."""

    pointer: str
    code: str
    detail: str

    def as_dict(self) -> dict[str, str]:
        return {"pointer": self.pointer, "code": self.code, "detail": self.detail}


class ServiceError(Exception):
    """A rule said no. Carries the HTTP status, a stable `code`, a sentence, and what a client may act on.

    `extra` holds further top-level members of the problem document; `headers` go on the response.
    """

    status: ClassVar[int] = 400
    title: ClassVar[str] = "Bad request"
    code: str = "bad_request"

    def __init__(
        self,
        detail: str = "",
        *,
        code: str | None = None,
        errors: Iterable[FieldError] = (),
        extra: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        if code is not None:
            self.code = code
        self.errors = tuple(errors)
        self.extra = dict(extra or {})
        self.headers = dict(headers or {})


class BadRequest(ServiceError):
    """The request can't be understood: malformed, a wrong type, an unknown field or filter."""


class Unauthenticated(ServiceError):
    """No usable credential. The code tells malformed, unknown, expired, used, and wrong kind apart."""

    status = 401
    title = "Not authenticated"
    code = "invalid_token"

    def __init__(self, detail: str = "", *, code: str | None = None) -> None:
        super().__init__(detail, code=code, headers={"WWW-Authenticate": 'Bearer realm="byteor"'})


class Forbidden(ServiceError):
    """The caller may see it but not do this."""

    status = 403
    title = "Not allowed"
    code = "permission_denied"


class NotFound(ServiceError):
    """It does not exist, or not for this caller: the two can't be told apart."""

    status = 404
    title = "Not found"
    code = "not_found"

    def __init__(self, detail: str = "There is nothing here.", *, code: str | None = None) -> None:
        super().__init__(detail, code=code)


class MethodNotAllowed(ServiceError):
    """This path does not know this method."""

    status = 405
    title = "Method not allowed"
    code = "method_not_allowed"


class Conflict(ServiceError):
    """The present state does not allow it."""

    status = 409
    title = "Conflict"
    code = "conflict"


class StateConflict(Conflict):
    """A move that the state machine does not have from where the object is now."""

    code = "invalid_transition"

    def __init__(self, from_: str, to: str, allowed: Sequence[str], detail: str = "") -> None:
        super().__init__(
            detail or f"This is '{from_}' and can't become '{to}'.",
            extra={"from": from_, "to": to, "allowed": sorted(allowed)},
        )
        self.from_ = from_
        self.to = to
        self.allowed = sorted(allowed)


class LengthRequired(ServiceError):
    """A body of unknown length (RFC 9110 §15.5.12)."""

    status = 411
    title = "Length required"
    code = "length_required"


class PreconditionFailed(ServiceError):
    """If-Match named another version than the present one (RFC 9110 §13)."""

    status = 412
    title = "Precondition failed"
    code = "precondition_failed"


class TooLarge(ServiceError):
    """The body is over the cap of this path."""

    status = 413
    title = "Body too large"
    code = "body_too_large"


class UnsupportedMediaType(ServiceError):
    """The body is of a kind this path does not take."""

    status = 415
    title = "Unsupported media type"
    code = "unsupported_media_type"


class Unprocessable(ServiceError):
    """Well-formed, but against a rule of the thing itself."""

    status = 422
    title = "Unprocessable"
    code = "unprocessable"


class PreconditionRequired(ServiceError):
    """This resource is only changed with If-Match (RFC 6585 §3)."""

    status = 428
    title = "Precondition required"
    code = "precondition_required"


class Unavailable(ServiceError):
    """Something this needs is not there now, through no fault of the request; trying again later may help."""

    status = 503
    title = "Temporarily unavailable"
    code = "unavailable"

    def __init__(self, detail: str = "", *, code: str | None = None, retry_after: int = 2) -> None:
        super().__init__(detail, code=code, headers={"Retry-After": str(retry_after)})


class StorageFull(ServiceError):
    """No room is left to write to (RFC 4918 §11.5). Nothing of the request was kept."""

    status = 507
    title = "Storage full"
    code = "storage_full"


class TooManyRequests(ServiceError):
    """Over a limit; waiting `retry_after` whole seconds makes room."""

    status = 429
    title = "Too many requests"
    code = "rate_limited"

    def __init__(
        self,
        detail: str = "",
        *,
        retry_after: int = 1,
        code: str | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail, code=code, extra=extra, headers={"Retry-After": str(max(1, retry_after))})
        self.retry_after = max(1, retry_after)
