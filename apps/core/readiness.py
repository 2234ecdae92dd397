"""Readiness checks, run by one background thread so that a probe never runs a check itself.

Apps register checks in `ready()` and state which kinds of process can't serve without them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog
from django.db import connection

log = structlog.get_logger(__name__)

WEB, WORKER = "web", "worker"
CHECK_EVERY_SECONDS = 3.0
STALE_SECONDS = 15.0
OLD_SECONDS = 60.0


class NotReady(Exception):
    """A check failed. The message is for operators and holds no secret."""


class Degraded(NotReady):
    """A check failed, but every process can still serve."""


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    check: Callable[[], None]
    needed_by: frozenset[str]
    every: float


@dataclass(frozen=True, slots=True)
class _Found:
    problem: str | None
    degraded: bool
    at: float


@dataclass(frozen=True, slots=True)
class Report:
    """A probe's response body, and whether this process can serve."""

    can_serve: bool
    body: dict[str, object]


_checks: dict[str, _Check] = {}
_found: dict[str, _Found] = {}
_watch: threading.Thread | None = None


def register_check(
    name: str, check: Callable[[], None], *, needed_by: Collection[str] = (), every_seconds: float = 0
) -> None:
    """Register a readiness check `name`.

    `check` returns if all is well, raises NotReady or Degraded if not, and must be quick. Processes of the kinds in
    `needed_by` can't serve without it; others are degraded. It runs at each round, or every `every_seconds`.
    """
    _checks[name] = _Check(name, check, frozenset(needed_by), every_seconds)


def run_checks() -> None:
    """Run every check that is due, required ones first."""
    now = time.monotonic()
    for check in sorted(_checks.values(), key=lambda c: not c.needed_by):
        former = _found.get(check.name)
        if former is None or now - former.at >= check.every:
            _found[check.name] = _run(check)


def _run(check: _Check) -> _Found:
    problem, degraded = None, False
    try:
        check.check()
    except NotReady as error:
        problem, degraded = str(error), isinstance(error, Degraded)
    except Exception as error:  # an unexpected error is a failed check and must not hide the other checks
        problem = f"check failed: {type(error).__name__}"
        connection.close()
    return _Found(problem, degraded, time.monotonic())


def report(kind: str) -> Report:
    """Return the last results for a process of `kind`: `{status, checks: {name: null or text}, degraded: [name]}`.

    `not_ready` if a check that this kind needs fails or is older than 15 s; `degraded` if another check fails.
    """
    now = time.monotonic()
    checks: dict[str, str | None] = {}
    failed: list[str] = []
    degraded: list[str] = []
    for check in list(_checks.values()):
        found = _found.get(check.name)
        needed = kind in check.needed_by
        limit = (STALE_SECONDS if needed else OLD_SECONDS) + check.every
        if found is None:
            problem, mild = "not checked yet", not needed
        elif now - found.at > limit:
            problem, mild = f"last checked {int(now - found.at)} s ago", not needed
        elif found.problem is None:
            checks[check.name] = None
            continue
        else:
            problem, mild = found.problem, found.degraded or not needed
        checks[check.name] = problem
        (degraded if mild else failed).append(check.name)
    status = "not_ready" if failed else "degraded" if degraded else "ready"
    return Report(not failed, {"status": status, "checks": checks, "degraded": degraded})


def watch() -> None:
    """Start the thread that runs the checks every few seconds."""
    global _watch
    if _watch is None or not _watch.is_alive():
        _watch = threading.Thread(target=_run_forever, name="readiness", daemon=True)
        _watch.start()


def _run_forever() -> None:
    while True:
        try:
            run_checks()
        except Exception as error:  # the thread must survive any error
            log.error("readiness check failed", exc_info=error)
        time.sleep(CHECK_EVERY_SECONDS)
