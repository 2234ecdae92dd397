"""Long polling: how a view asks the server to answer a request later.

A view never blocks. If it has nothing new and the client asked to wait, it returns the response for the end of the wait
(204) and passes a `Wait` to the server. The server keeps the connection, checks again when the wait's channel is
notified, and sends the first response otherwise.

To check again is to call the view, which repeats authentication and authorization. When one change wakes a whole fleet,
a wait can name a `recheck` function that answers many waits in a few queries. It returns only what the view would
return, and leaves every other case to the view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from django.http import HttpRequest
from rest_framework.request import Request

SLOT = "byteor.wait"
"""Key of the WSGI environment under which a server that supports waiting passes a `WaitSlot`."""


class RecheckResult(Enum):
    """Result of a recheck that is not a response."""

    NOTHING_NEW = "nothing new"
    CALL_VIEW = "call the view"


Recheck = Callable[[Sequence[Any]], Sequence[bytes | RecheckResult]]
"""Checks waits again by their `subject`. Returns for each the JSON of a 200, or a `RecheckResult`. Called in a thread."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait at most `seconds` until `channel` is notified again.

    `seen` is the channel's `wake.ticket`, taken before the view read its data, so that no notification in between is
    missed. `holder` is the client for the limit on waits per client. `retry_after` is the number of seconds after which
    a client over that limit retries. `recheck`, if given, checks `subject` without the view.
    """

    channel: str
    seen: int
    seconds: float
    holder: str
    retry_after: int
    subject: Any = None
    recheck: Recheck | None = None


def _nothing(status: int) -> None:
    return None


@dataclass(slots=True)
class WaitSlot:
    """Holds the `Wait` of a view. The server calls `answered` with the status when it responds without the view.

    `kept` holds data of the view for its next call for the same request.
    """

    wait: Wait | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    answered: Callable[[int], None] = field(default=_nothing)


def request_wait(request: HttpRequest | Request, wait: Wait) -> bool:
    """Ask the server to keep `request` for `wait`. False if the server can't: the current response is sent."""
    slot = request.META.get(SLOT)
    if not isinstance(slot, WaitSlot):
        return False
    slot.wait = wait
    return True


def is_requested(request: HttpRequest) -> bool:
    """Return whether a view asked to keep this request, so that its current response is not sent yet."""
    slot = request.META.get(SLOT)
    return isinstance(slot, WaitSlot) and slot.wait is not None


def log_when_answered(request: HttpRequest, write: Callable[[int], None]) -> None:
    """Call `write` with the status once a kept request is answered without its view."""
    slot = request.META.get(SLOT)
    if isinstance(slot, WaitSlot):
        slot.answered = write


def kept(request: HttpRequest | Request) -> dict[str, Any]:
    """Return the dict that a view keeps between its calls for one request; empty at the first call."""
    slot = request.META.get(SLOT)
    return slot.kept if isinstance(slot, WaitSlot) else {}
