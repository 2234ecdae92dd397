"""Limits that a superuser set for an organization. A change counts in every process within `REMEMBERED_SECONDS`.

Each process remembers all of them for that long: a call costs no query.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog
from django.db import Error

from apps.core.db import reason
from apps.limits.models import RANGES, USUAL, RateOverride

log = structlog.get_logger(__name__)

REMEMBERED_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Known:
    """{limit: {organization: number a minute}}, good until `until` (monotonic seconds)."""

    limits: Mapping[str, Mapping[uuid.UUID, int]]
    until: float


def nothing_set(until: float) -> _Known:
    """No overrides, until `until` (monotonic seconds)."""
    return _Known({name: {} for name in RANGES}, until)


_known = nothing_set(float("-inf"))
_reading = threading.Lock()


def _after_fork() -> None:
    global _reading
    _reading = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def forget() -> None:
    """Read the overrides again at the next call."""
    global _known
    _known = _Known(_known.limits, float("-inf"))


def _current() -> _Known:
    global _known
    if time.monotonic() < _known.until:
        return _known
    with _reading:
        if time.monotonic() >= _known.until:
            _known = _read()
        return _known


def _read() -> _Known:
    until = time.monotonic() + REMEMBERED_SECONDS
    limits: dict[str, dict[uuid.UUID, int]] = {name: {} for name in RANGES}
    try:
        for organization_id, *numbers in RateOverride.objects.values_list("organization_id", *RANGES):
            for name, number in zip(RANGES, numbers, strict=True):
                if number is not None:
                    limits[name][organization_id] = number
    except Error as error:
        log.warning("rate overrides can't be read; those read before hold", reason=reason(error))
        return _Known(_known.limits, until)
    return _Known(limits, until)


def calls_of(limit: str, organizations: Iterable[uuid.UUID | None]) -> int:
    """Calls a minute of a caller in these organizations, by one of `RANGES`: the highest number that one of them gives."""
    own, usual = _current().limits[limit], USUAL[limit]
    return max((own.get(each, usual) if each else usual for each in organizations), default=usual)
