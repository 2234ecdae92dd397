"""Prometheus metrics. Apps register gauges in `ready()`; their values are read from the database at the scrape."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django.conf import settings
from django.db.models import Count, QuerySet
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
KEPT_SECONDS = 5.0
"""How long a result is cached, so that frequent scrapes count the tables only once in that time."""

Read = Callable[[], Mapping[tuple[str, ...], float]]

_gauges: dict[str, tuple[str, tuple[str, ...], Read]] = {}
_lock = threading.Lock()
_kept: tuple[float, bytes] | None = None


def register_gauge(name: str, text: str, read: Read, *, labels: tuple[str, ...] = ()) -> None:
    """Add the gauge `name` to `/metrics`. `read` returns {values of `labels`: value}, counted by an index."""
    _gauges[name] = (text, labels, read)


def is_allowed(authorization: str) -> bool:
    """Return whether a scrape with this `Authorization` header is allowed.

    With `BYTEOR_CLOUD_METRICS_TOKEN` set, only with that bearer token. Without one: always in the local profile, never
    in hosted profiles.
    """
    token = str(settings.BYTEOR_METRICS_TOKEN)
    if not token:
        return not settings.BYTEOR_HOSTED
    return hmac.compare_digest(authorization.encode("utf-8", "surrogateescape"), f"Bearer {token}".encode())


def exposition() -> bytes:
    """Return the text of every gauge, at most `KEPT_SECONDS` old. Raises the database's errors."""
    global _kept
    with _lock:
        now = time.monotonic()
        if _kept is None or now - _kept[0] > KEPT_SECONDS:
            registry = CollectorRegistry()
            for name, (text, labels, read) in sorted(_gauges.items()):
                gauge = Gauge(name, text, labels, registry=registry)
                for values, number in read().items():
                    (gauge.labels(*values) if labels else gauge).set(number)
            _kept = (now, generate_latest(registry))
        return _kept[1]


def count_by_status(rows: QuerySet[Any], statuses: Iterable[str]) -> dict[tuple[str, ...], float]:
    """Count `rows` by status in one query, with 0 for each of `statuses` without rows."""
    found = dict(rows.order_by().values_list("status").annotate(n=Count("pk")))
    return {(status,): float(found.get(status, 0)) for status in statuses}


def forget() -> None:
    """Drop the cached result."""
    global _kept
    _kept = None
