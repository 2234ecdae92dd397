"""What must work before traffic is sent here. Rooms register their checks in `ready()`."""

from __future__ import annotations

from collections.abc import Callable


class NotReady(Exception):
    """A check failed; the text says what is wrong in words for an operator, without a secret."""


_checks: dict[str, Callable[[], None]] = {}


def register_check(name: str, check: Callable[[], None]) -> None:
    """Make `check` part of `/readyz` under `name`. It returns when well and raises `NotReady` when not."""
    _checks[name] = check


def run_checks() -> dict[str, str | None]:
    """Every check by name, with None where it is well, else what is wrong."""
    results: dict[str, str | None] = {}
    for name, check in _checks.items():
        try:
            check()
        except NotReady as error:
            results[name] = str(error)
        except Exception as error:  # a check that breaks is an answer too, and must not hide the others
            results[name] = f"check failed: {type(error).__name__}"
        else:
            results[name] = None
    return results
