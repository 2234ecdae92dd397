"""Context of the current request, for logs and audit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The current request: its id, the client's address, and the public id of its credential."""

    request_id: str = ""
    ip: str = ""
    credential_id: str = ""


_at_end: ContextVar[list[Callable[[], object]] | None] = ContextVar("byteor_at_end", default=None)
_current: ContextVar[RequestContext] = ContextVar("byteor_request", default=RequestContext())  # noqa: B039 - frozen


def current() -> RequestContext:
    """Return the context of the current request, or an empty one outside a request."""
    return _current.get()


def set_credential(credential_id: str) -> None:
    """Store which credential the current request used."""
    _current.set(replace(_current.get(), credential_id=credential_id))


def at_end(call: Callable[[], object]) -> bool:
    """Run `call` at the end of the current request, outside its transactions. Returns False outside a request."""
    waiting = _at_end.get()
    if waiting is None:
        return False
    waiting.append(call)
    return True


def finish() -> None:
    """Run the calls registered with `at_end` so far. All of them run; the first error is raised afterwards."""
    waiting = _at_end.get() or []
    due = waiting[:]
    waiting.clear()
    with ExitStack() as calls:
        for call in reversed(due):
            calls.callback(call)


@contextmanager
def serving(context: RequestContext) -> Iterator[None]:
    """Make `context` current inside the block, then run the calls registered with `at_end` (`finish`)."""
    token, waiting = _current.set(context), _at_end.set([])
    try:
        yield
        finish()
    finally:
        _at_end.reset(waiting)
        _current.reset(token)
