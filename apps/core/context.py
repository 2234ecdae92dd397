"""What the present request is, for logs and audit, without passing it through every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The request being served: its id, the caller's address, and the public id of the credential used."""

    request_id: str = ""
    ip: str = ""
    credential_id: str = ""


_current: ContextVar[RequestContext] = ContextVar("byteor_request", default=RequestContext())  # noqa: B039 - frozen


def current() -> RequestContext:
    """The context of the request being served; an empty one outside of any."""
    return _current.get()


def set_credential(credential_id: str) -> None:
    """Note which credential the present request used."""
    _current.set(replace(_current.get(), credential_id=credential_id))


@contextmanager
def serving(context: RequestContext) -> Iterator[None]:
    """Make `context` the current one inside the block."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
