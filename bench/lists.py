"""A page of a list at 1,000,000 rows against the same page at 1,000: deployments and jobs of an environment, and the audit trail's
rows as the admin reads them; first page, with filters, and a page deep in the list reached by its cursor.

The same requests through the whole application, with authentication, roles and every middleware; one environment holds 1,000 rows,
its sibling 1,000,000, in the same tables. A deep page is the one after the row in the middle. Both pages hold as many rows: one that
is not full would cost less for that alone.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg

from bench.control_plane import Application, control_plane, log_in_a_file, tokens_of
from bench.measure import ratio

FEW, MANY = 1_000, 1_000_000


def main() -> None:
    """Measure and print."""
    with control_plane() as url, log_in_a_file():
        _measure(url)


def _rows(raw: Any, table: str, template: uuid.UUID, count: int, **columns: str) -> None:
    """`count` copies of a row, their ids UUIDv7 a second apart, the newest last."""
    columns_of = "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
    names = [row[0] for row in raw.execute(columns_of, (table,))]
    # 48 bits of Unix ms in front, as `core.ids.new_id` makes them
    at = f"now() - make_interval(secs => {count} - n)"
    ident = (
        f"(lpad(to_hex((extract(epoch FROM {at}) * 1000)::bigint), 12, '0') || '7000' || '8' || "
        "substr(replace(gen_random_uuid()::text, '-', ''), 1, 15))::uuid"
    )
    chosen = {"id": ident, "created_at": at, **columns}
    values = ", ".join(chosen.get(name, f't."{name}"') for name in names)
    listed = ", ".join(f'"{name}"' for name in names)
    raw.execute(
        f"INSERT INTO {table} ({listed}) SELECT {values} FROM {table} AS t CROSS JOIN generate_series(1, %s) AS n WHERE t.id = %s",
        (count, template),
    )


def _measure(url: str) -> None:
    from byteor.wsgi import application
    from tests.support import make_tenant

    tenant = make_tenant()
    tokens = tokens_of(tenant.people["vera"])
    raw = psycopg.connect(url, autocommit=True)
    for environment, count in ((tenant.dev, FEW), (tenant.staging, MANY)):
        _fill(raw, tenant, environment, count)
    raw.execute("VACUUM ANALYZE")
    app = Application(application)
    small, large = f"/api/v1{tenant.path(tenant.dev)}", f"/api/v1{tenant.path(tenant.staging)}"

    def cursor(table: str, environment: Any) -> str:
        half = raw.execute(f"SELECT count(*) / 2 FROM {table} WHERE environment_id = %s", (environment.pk,)).fetchone()[
            0
        ]
        row = raw.execute(
            f"SELECT id FROM {table} WHERE environment_id = %s ORDER BY id OFFSET %s LIMIT 1", (environment.pk, half)
        ).fetchone()
        return base64.urlsafe_b64encode(b"n" + row[0].bytes).decode().rstrip("=")

    for name, table, status in (
        ("deployments", "deployments_deployment", "denied"),
        ("jobs", "jobs_job", "dead_letter"),
    ):
        here, there = cursor(table, tenant.dev), cursor(table, tenant.staging)
        newest, at = _newest(raw, table, tenant.dev), _newest(raw, table, tenant.staging)
        old, old_at = newest - dt.timedelta(seconds=FEW * 0.9), at - dt.timedelta(seconds=MANY * 0.9)
        new, new_at = newest - dt.timedelta(seconds=FEW * 0.009), at - dt.timedelta(seconds=MANY * 0.009)
        since = "created_after=2020-01-01T00:00:00Z"
        pages = (
            ("first page", "", ""),
            ("deep page", f"?cursor={here}", f"?cursor={there}"),
            (f"status={status}", f"?status={status}", f"?status={status}"),
            (f"status={status}, deep", f"?status={status}&cursor={here}", f"?status={status}&cursor={there}"),
            ("created_after", f"?{since}", f"?{since}"),
            ("created_before, old", f"?created_before={_text(old)}", f"?created_before={_text(old_at)}"),
            ("created_after, new", f"?limit=5&created_after={_text(new)}", f"?limit=5&created_after={_text(new_at)}"),
        )
        for what, few, many in pages:
            _compare(app, tokens, f"{name}, {what}", f"{small}/{name}{few}", f"{large}/{name}{many}")
    raw.close()


def _newest(raw: Any, table: str, environment: Any) -> dt.datetime:
    found: dt.datetime = raw.execute(
        f"SELECT max(created_at) FROM {table} WHERE environment_id = %s", (environment.pk,)
    ).fetchone()[0]
    return found


def _text(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _compare(app: Application, tokens: Iterator[str], name: str, small: str, large: str) -> None:
    def get(path: str) -> bytes:
        status, body = app.call("GET", path, token=next(tokens))
        if status != 200:
            raise SystemExit(f"{path}: {status}")
        return body

    one, other = (len(json.loads(get(path))["results"]) for path in (small, large))
    if one != other or not one:
        raise SystemExit(f"{name}: a page of {one} rows is no measure for one of {other}")
    ratio(f"{name}: 1,000,000 / 1,000 rows", lambda: get(large), lambda: get(small), 10, rounds=7, wanted="<= 1.2")


def _fill(raw: Any, tenant: Any, environment: Any, count: int) -> None:
    from apps.deployments.models import Deployment
    from apps.jobs.models import Job

    here: dict[str, Any] = {"environment": environment}
    job = Job.objects.create(organization=tenant.organization, type="spec_ingest", subject_id=uuid.uuid4(), **here)
    deployment = Deployment.objects.create(
        bundle_id=uuid.uuid4(),
        version_id=uuid.uuid4(),
        version_number=1,
        pipeline_name="orders",
        spec_hash="",
        config_hash="",
        approval_id=uuid.uuid4(),
        target_selector={"all": True},
        strategy={"type": "all_at_once"},
        **here,
    )
    # one in a hundred, at least two pages, is what a filter looks for; the rules of moves hold for people, not for this
    each = max(1, min(100, count // 120))
    for table in ("jobs_job", "deployments_deployment"):
        raw.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    _rows(raw, "jobs_job", job.pk, count, status=f"CASE WHEN n %% {each} = 0 THEN 'dead_letter' ELSE 'completed' END")
    _rows(
        raw,
        "deployments_deployment",
        deployment.pk,
        count,
        status=f"CASE WHEN n %% {each} = 0 THEN 'denied' ELSE 'failed' END",
    )
    for table in ("jobs_job", "deployments_deployment"):
        raw.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")


if __name__ == "__main__":
    main()
