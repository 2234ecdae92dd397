"""`/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

import hmac
import shutil
import sqlite3

import redis
from django.conf import settings
from django.core.cache import caches
from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from apps.agents.models import Agent
from apps.core import readiness
from apps.core.readiness import NotReady
from apps.deployments.models import Deployment
from apps.jobs.models import Job

ROOM_BYTES = 1024 * 1024


def _database() -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Error as error:
        connection.close()
        raise NotReady(f"the database does not answer: {type(error).__name__}") from error
    if connection.vendor == "sqlite" and shutil.disk_usage(settings.BYTEOR_DATA_DIR).free < ROOM_BYTES:
        raise NotReady("the disk of the data directory is full")


def _migrations() -> None:
    try:
        executor = MigrationExecutor(connection)
        waiting = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except Error as error:
        raise NotReady("the database does not answer") from error
    if waiting:
        raise NotReady(f"{len(waiting)} migrations wait")


def _cache() -> None:
    try:
        caches[settings.RATELIMIT_USE_CACHE].set("byteor.readyz", 1, 60)
    except redis.RedisError as error:
        raise NotReady(f"Redis does not answer: {type(error).__name__}") from error
    except (sqlite3.Error, OSError) as error:
        raise NotReady(f"the cache's file can't be written: {error}") from error


def register() -> None:
    """The checks of what this process itself stands on."""
    readiness.register_check("database", _database)
    readiness.register_check("migrations", _migrations)
    readiness.register_check("cache", _cache)


@never_cache
@require_GET
def healthz(request: HttpRequest) -> HttpResponse:
    """Alive: answers without looking at anything."""
    return JsonResponse({"status": "ok"})


@never_cache
@require_GET
def readyz(request: HttpRequest) -> HttpResponse:
    """200 when every check is well, else 503; each is named with what is wrong."""
    results = readiness.run_checks()
    bad = any(results.values())
    checks = {name: problem or "ok" for name, problem in results.items()}
    return JsonResponse({"status": "not_ready" if bad else "ready", "checks": checks}, status=503 if bad else 200)


@never_cache
@require_GET
def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus text, read from the database at the scrape. With a token configured, only to its bearer."""
    token = settings.BYTEOR_METRICS_TOKEN
    if token and not hmac.compare_digest(request.headers.get("Authorization", ""), f"Bearer {token}"):
        return HttpResponse("a token is needed\n", status=401, content_type="text/plain")
    registry = CollectorRegistry()
    for name, text, rows in (
        ("byteor_jobs", "Jobs by status", Job.objects.all()),
        ("byteor_deployments", "Deployments by status", Deployment.objects.all()),
    ):
        gauge = Gauge(name, text, ["status"], registry=registry)
        for status in rows.values_list("status", flat=True).distinct():
            gauge.labels(status).set(rows.filter(status=status).count())
    Gauge("byteor_agents", "Enrolled agents", registry=registry).set(Agent.objects.filter(revoked_at=None).count())
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
