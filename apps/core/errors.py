"""The errors that domain code raises. `apps.api.problems` turns them into RFC 9457 documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True)
class FieldError:
    """One invalid part of an input: a JSON pointer (RFC 6901), a stable code, and a message."""

    pointer: str
    code: str
    detail: str

    def as_dict(self) -> dict[str, str]:
        return {"pointer": self.pointer, "code": self.code, "detail": self.detail}


class ServiceError(Exception):
    """Base of all errors: an HTTP status, a stable `code`, a message, and data for the client.

    `extra` holds further top-level members of the problem document. `headers` are added to the response.
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

    @classmethod
    def about(cls, pointer: str, code: str, detail: str) -> Self:
        """The error that one part of the input is refused for `code`, which is also the code of the whole."""
        return cls(detail, code=code, errors=[FieldError(pointer, code, detail)])


class BadRequest(ServiceError):
    """The request is invalid: malformed, a wrong type, an unknown field or filter."""

    @classmethod
    def about(cls, pointer: str, code: str, detail: str) -> Self:
        """The error `invalid_input` about one part of the input, which is refused for `code`."""
        return cls(detail, code="invalid_input", errors=[FieldError(pointer, code, detail)])


class Unauthenticated(ServiceError):
    """No valid credential. The code distinguishes malformed, unknown, expired, used, and wrong kind."""

    status = 401
    title = "Not authenticated"
    code = "invalid_token"

    def __init__(self, detail: str = "", *, code: str | None = None) -> None:
        super().__init__(detail, code=code, headers={"WWW-Authenticate": 'Bearer realm="byteor"'})


class Forbidden(ServiceError):
    """The caller may see the resource but not perform the action."""

    status = 403
    title = "Not allowed"
    code = "permission_denied"


class NotFound(ServiceError):
    """The resource does not exist or is not visible to the caller. A client can't distinguish the two."""

    status = 404
    title = "Not found"
    code = "not_found"

    def __init__(self, detail: str = "Not found.", *, code: str | None = None) -> None:
        super().__init__(detail, code=code)


class MethodNotAllowed(ServiceError):
    """The path does not support the method."""

    status = 405
    title = "Method not allowed"
    code = "method_not_allowed"


class RequestTimeout(ServiceError):
    """The request was not complete in time (RFC 9110 §15.5.9)."""

    status = 408
    title = "Request timeout"
    code = "request_timeout"


class NotAcceptable(ServiceError):
    """No media type that the client accepts is available (RFC 9110 §15.5.7)."""

    status = 406
    title = "Not acceptable"
    code = "not_acceptable"


class Conflict(ServiceError):
    """The current state does not allow the request."""

    status = 409
    title = "Conflict"
    code = "conflict"


class StateConflict(Conflict):
    """The state machine has no such transition from the current status."""

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
    """The body has no Content-Length (RFC 9110 §15.5.12)."""

    status = 411
    title = "Length required"
    code = "length_required"


class PreconditionFailed(ServiceError):
    """If-Match names another version than the current one (RFC 9110 §13)."""

    status = 412
    title = "Precondition failed"
    code = "precondition_failed"


class TooLarge(ServiceError):
    """The body exceeds the limit of this path."""

    status = 413
    title = "Body too large"
    code = "body_too_large"


class UnsupportedMediaType(ServiceError):
    """The path does not accept the body's media type."""

    status = 415
    title = "Unsupported media type"
    code = "unsupported_media_type"


class Unprocessable(ServiceError):
    """The request is well-formed but violates a domain rule."""

    status = 422
    title = "Unprocessable"
    code = "unprocessable"


class PreconditionRequired(ServiceError):
    """This resource requires If-Match for changes (RFC 6585 §3)."""

    status = 428
    title = "Precondition required"
    code = "precondition_required"


class Unavailable(ServiceError):
    """A dependency is temporarily unavailable; a retry may succeed."""

    status = 503
    title = "Temporarily unavailable"
    code = "unavailable"

    def __init__(self, detail: str = "", *, code: str | None = None, retry_after: int = 2) -> None:
        super().__init__(detail, code=code, headers={"Retry-After": str(retry_after)})


class StorageUnavailable(Unavailable):
    """The file store is unavailable or failed. `reason` is for operators and not part of the response."""

    code = "storage_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__("The file store is temporarily unavailable. Try again.", code=self.code, retry_after=5)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.detail} ({self.reason})"


class StorageFull(ServiceError):
    """The storage is full (RFC 4918 §11.5). Nothing of the request was stored."""

    status = 507
    title = "Storage full"
    code = "storage_full"


class TooManyRequests(ServiceError):
    """A limit is exceeded; retry after `retry_after` whole seconds."""

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
