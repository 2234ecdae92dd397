"""`/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

import shutil
import sqlite3
from functools import lru_cache

import redis
from django.conf import settings
from django.core.cache import caches
from django.db import Error, connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from apps.core import metrics, pooler, readiness
from apps.core.readiness import NotReady

MIN_FREE_BYTES = 1024 * 1024


def _database() -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Error as error:
        connection.close()
        raise NotReady(f"the database is unavailable: {type(error).__name__}") from error
    if connection.vendor == "sqlite" and shutil.disk_usage(settings.BYTEOR_DATA_DIR).free < MIN_FREE_BYTES:
        raise NotReady("the disk of the data directory is full")
    if not settings.BYTEOR_DATABASE_DIRECT_URL and _pooled():
        raise NotReady(pooler.REFUSAL)


@lru_cache(maxsize=1)
def _pooled() -> bool:
    """True if connections go through a pooler. Cached, because it does not change while the process runs."""
    return pooler.is_transaction_pooler()


def _migrations() -> None:
    try:
        applied = MigrationRecorder(connection).applied_migrations()
    except Error as error:
        raise NotReady("the database is unavailable") from error
    waiting = _known_migrations() - applied.keys()
    if waiting:
        raise NotReady(f"{len(waiting)} migrations are not applied")


@lru_cache(maxsize=1)
def _known_migrations() -> frozenset[tuple[str, str]]:
    """Every migration in the code. Cached, because reading them is slower than all checks together."""
    return frozenset(MigrationLoader(None).disk_migrations)


def _cache() -> None:
    try:
        caches[settings.RATELIMIT_USE_CACHE].set("byteor.readyz", 1, 60)
    except redis.RedisError as error:
        raise NotReady(f"Redis is unavailable: {type(error).__name__}") from error
    except (sqlite3.Error, OSError) as error:
        raise NotReady(f"the cache's file can't be written: {error}") from error


def register() -> None:
    """Register the readiness checks of this process's dependencies."""
    both = (readiness.WEB, readiness.WORKER)
    readiness.register_check("database", _database, needed_by=both)
    readiness.register_check("migrations", _migrations, needed_by=(readiness.WEB,))
    readiness.register_check("cache", _cache)


@never_cache
@require_safe
def healthz(request: HttpRequest) -> HttpResponse:
    """Liveness: answers without checking any dependency."""
    return JsonResponse({"status": "ok"})


@never_cache
@require_safe
def readyz(request: HttpRequest) -> HttpResponse:
    """Readiness: the result of the last checks of this process (`apps.core.readiness`).

    503 when it can't serve requests; 200 otherwise, also when another component is degraded.
    """
    found = readiness.report(readiness.WEB)
    return JsonResponse(found.body, status=200 if found.can_serve else 503)


@never_cache
@require_safe
def prometheus(request: HttpRequest) -> HttpResponse:
    """Prometheus metrics, for clients that `apps.core.metrics` allows."""
    if not metrics.is_allowed(request.META.get("HTTP_AUTHORIZATION", "")):
        refused = HttpResponse(
            "a token is required (BYTEOR_CLOUD_METRICS_TOKEN)\n", status=401, content_type="text/plain"
        )
        refused["WWW-Authenticate"] = 'Bearer realm="metrics"'
        return refused
    return HttpResponse(metrics.exposition(), content_type=metrics.CONTENT_TYPE)
