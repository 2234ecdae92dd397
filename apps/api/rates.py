"""Rate windows of the API: a call is counted after its credential was accepted and before anything else is judged."""

from __future__ import annotations

from collections.abc import Mapping

from apps.access.principals import Principal
from apps.core.errors import TooManyRequests
from apps.limits import overrides
from apps.limits.windows import Taken, Window


def window_of(principal: Principal) -> Window | None:
    """One for all browser sessions of a person, one for each personal token, one for an agent whichever of its keys it
    sends; None for callers without a window."""
    match principal.kind, principal.via:
        case "person", "token":
            return Window(f"token:{principal.credential_id}", _calls_of_person(principal))
        case "person", _:
            return Window(f"person:{principal.id}", _calls_of_person(principal))
        case "agent", _:
            return Window(f"agent:{principal.id}", overrides.calls_of("agent_calls", [principal.organization_id]))
    return None


def _calls_of_person(person: Principal) -> int:
    return overrides.calls_of("person_calls", {organization_id for organization_id, _, _ in person.roles})


def headers_of(taken: Taken) -> Mapping[str, str]:
    """`X-RateLimit-Limit`, `-Remaining` and `-Reset` (Unix seconds); none while only this process counts."""
    if not taken.shared:
        return {}
    return {
        "X-RateLimit-Limit": str(taken.limit),
        "X-RateLimit-Remaining": str(taken.remaining),
        "X-RateLimit-Reset": str(taken.reset_at),
    }


def refusal_of(taken: Taken) -> TooManyRequests:
    """The 429 of a call that was refused; waiting `Retry-After` seconds succeeds."""
    detail = f"At most {taken.limit} calls a minute. Try again in {taken.retry_after} seconds."
    return TooManyRequests(detail, retry_after=taken.retry_after)
