"""The two steps that every attempt costs, in the database's own words: taking a job, and completing it.

PostgreSQL: one statement and one commit each, and one for both together, which the server keeps planned. SQLite has one
writer and no statement that writes two tables: the same steps in one transaction. Moves made here are those of the transition
table (a test compares them), and the database's trigger guards them all the same.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from apps.core import clock
from apps.core.fsm import Move, advance
from apps.core.ids import new_id
from apps.core.prepared import planned_rows
from apps.jobs.models import Job, JobAttempt, JobStatus
from apps.jobs.registry import JobRun

LEASE = dt.timedelta(seconds=settings.BYTEOR_JOB_LEASE_SECONDS)
"""How long a worker has a job without a word; 30 s, shorter only where tests kill workers (local profile)."""
RUNNING_PER_ORGANIZATION = 8
FREE: dict[str, None] = dict.fromkeys(
    ("lease_token", "lease_expires_at", "lease_slot", "lease_cluster", "lease_pid"), None
)

_WAITS = "status IN ('queued', 'retrying') AND lease_token IS NULL"
# each organization that has something waiting, by one probe of the index, however long its queue is
_WAITING = f"""waiting (org) AS (
    SELECT {{nobody}}
    UNION ALL
    SELECT (SELECT organization_id FROM jobs_job
            WHERE {_WAITS} AND organization_id > waiting.org ORDER BY organization_id LIMIT 1)
    FROM waiting WHERE waiting.org IS NOT NULL)"""  # noqa: S608 - constants
_RUNNING = "(SELECT count(*) FROM jobs_job l WHERE l.organization_id = w.org AND l.lease_slot IS NOT NULL)"
_NOBODY = {"postgresql": "'00000000-0000-0000-0000-000000000000'::uuid", "sqlite": f"'{'0' * 32}'"}

_DUE = f"{_WAITS} AND run_at <= %(now)s::timestamptz AND type = ANY (%(types)s::text[])"
_TAKING = f"""{_WAITING.format(nobody=_NOBODY["postgresql"])}, tenant AS (
    SELECT w.org, f.run_at, f.id, {_RUNNING} AS running
    FROM waiting w CROSS JOIN LATERAL (
        SELECT run_at, id FROM jobs_job WHERE organization_id = w.org AND {_DUE} ORDER BY run_at, id LIMIT 1) f
), free AS (
    SELECT c.org, j.id, j.status
    FROM (SELECT org FROM tenant WHERE running < %(cap)s::int
          ORDER BY running, array_position(%(served)s::uuid[], org) NULLS FIRST, run_at, id) c
    CROSS JOIN LATERAL (
        SELECT id, status FROM jobs_job
        WHERE organization_id = c.org AND {_DUE} ORDER BY run_at, id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) j
    LIMIT 1
), taken AS (
    UPDATE jobs_job t SET
        status = CASE free.status WHEN 'queued' THEN 'running' ELSE free.status END,
        attempts = t.attempts + 1, attempt_running = true, started_at = %(now)s::timestamptz,
        lease_token = %(token)s::uuid, lease_expires_at = %(leased_until)s::timestamptz,
        lease_cluster = %(cluster)s::uuid, lease_pid = %(pid)s::int,
        lease_slot = (
            SELECT s FROM generate_series(0, %(cap)s::int - 1) s
            WHERE NOT EXISTS (SELECT 1 FROM jobs_job l WHERE l.organization_id = free.org AND l.lease_slot = s)
            ORDER BY (s - %(slot)s::int + %(cap)s::int) %% %(cap)s::int LIMIT 1)
    FROM free WHERE t.id = free.id
    RETURNING t.id, t.type, t.subject_id, t.payload, t.organization_id, t.environment_id, t.attempts, t.lease_slot,
              free.status AS was, t.status AS now
), taken_row AS (
    INSERT INTO jobs_jobattempt (id, created_at, job_id, number, from_status, to_status, error_class, error)
    SELECT %(taken_row)s::uuid, %(now)s::timestamptz, id, attempts, was, now, '', '' FROM taken
)"""  # noqa: S608 - constants
_COMPLETING = """ended AS (
    UPDATE jobs_job SET status = 'completed', progress = 100, note = %(note)s::text, error_class = '', error = '',
        attempt_running = false, finished_at = %(now)s::timestamptz, lease_token = NULL, lease_expires_at = NULL,
        lease_slot = NULL, lease_cluster = NULL, lease_pid = NULL
    WHERE id = %(ending)s::uuid AND lease_token = %(ending_token)s::uuid AND status = %(ending_status)s::text
    RETURNING id, attempts, started_at
), ended_row AS (
    INSERT INTO jobs_jobattempt
        (id, created_at, job_id, number, from_status, to_status, error_class, error, duration_ms)
    SELECT %(ended_row)s::uuid, %(now)s::timestamptz, id, attempts, %(ending_status)s::text, 'completed', '', '',
        greatest(0, extract(epoch FROM %(now)s::timestamptz - started_at) * 1000)::bigint
    FROM ended
)"""
_TAKE = f"WITH RECURSIVE {_TAKING} SELECT 0, taken.* FROM taken"  # noqa: S608 - constants
_COMPLETE = f"WITH {_COMPLETING} SELECT count(*) FROM ended"  # noqa: S608 - constants
_COMPLETE_AND_TAKE = f"""WITH RECURSIVE {_COMPLETING}, {_TAKING}
    SELECT (SELECT count(*) FROM ended), taken.* FROM (SELECT 1) AS one LEFT JOIN taken ON true"""  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class Taker:
    """Who takes: the process, the place it had last (so that two don't want the same), whom it served last (newest last)."""

    cluster: uuid.UUID | None
    slot: int
    served: Sequence[uuid.UUID]


@dataclass(frozen=True, slots=True)
class Taken:
    """A job that is ours now, its attempt counted, and its place among those of its organization."""

    run: JobRun
    slot: int


def _own_transaction() -> contextlib.AbstractContextManager[object]:
    # one statement is a transaction; only inside another one it needs a savepoint to fail alone
    return transaction.atomic() if connection.in_atomic_block else contextlib.nullcontext()


def take(taker: Taker, types: Sequence[str]) -> Taken | None:
    """Lease what is due and count its attempt, in one transaction; None when there is nothing for us.

    Organizations take turns: first who has the least running, then who was served longest ago, then what has been due
    longest; one that has its eight running is passed over. Raises IntegrityError when another took the same place
    at the same moment: the next try sees it.
    """
    token, now = new_id(), clock.now()
    if connection.vendor != "postgresql":
        return _take_on_sqlite(taker, types, token, now)
    with _own_transaction():
        rows = planned_rows(_TAKE, _taking(taker, types, token, now))
    return _taken(rows, token)


def _taking(taker: Taker, types: Sequence[str], token: uuid.UUID, now: dt.datetime) -> dict[str, Any]:
    return {
        "now": now,
        "types": list(types),
        "cap": RUNNING_PER_ORGANIZATION,
        "served": list(taker.served),
        "token": token,
        "leased_until": now + LEASE,
        "cluster": taker.cluster,
        "pid": os.getpid(),
        "slot": taker.slot % RUNNING_PER_ORGANIZATION,
        "taken_row": new_id(),
    }


def _taken(rows: list[tuple[Any, ...]], token: uuid.UUID) -> Taken | None:
    if not rows or rows[0][1] is None:
        return None
    _ended, id_, type_, subject_id, payload, organization_id, environment_id, attempt, slot, *_ = rows[0]
    run = JobRun(
        job_id=id_,
        type=type_,
        subject_id=subject_id,
        payload=json.loads(payload),
        organization_id=organization_id,
        environment_id=environment_id,
        attempt=attempt,
        lease_token=token,
    )
    return Taken(run, slot)


def _tenants_on_sqlite(types: Sequence[str], now: dt.datetime) -> list[tuple[int, str, str, str]]:
    """(running, organization, when its first due job is due, that job) of each organization that may have one more."""
    marks = ", ".join(["%s"] * len(types))
    statement = (
        f"WITH RECURSIVE {_WAITING.format(nobody=_NOBODY['sqlite'])}"  # noqa: S608 - constants
        f"""SELECT {_RUNNING}, w.org, j.run_at, j.id FROM waiting w JOIN jobs_job j ON j.id = (
            SELECT id FROM jobs_job WHERE organization_id = w.org AND {_WAITS} AND run_at <= %s AND type IN ({marks})
            ORDER BY run_at, id LIMIT 1)"""
    )
    moment = Job._meta.get_field("run_at").get_db_prep_value(now, connection)
    with connection.cursor() as cursor:
        cursor.execute(statement, [moment, *types])
        return [row for row in cursor.fetchall() if row[0] < RUNNING_PER_ORGANIZATION]


def _take_on_sqlite(taker: Taker, types: Sequence[str], token: uuid.UUID, now: dt.datetime) -> Taken | None:
    if not types or not _tenants_on_sqlite(types, now):
        return None  # looked at without the write lock: idle workers keep nobody from writing
    served = {id_.hex: order for order, id_ in enumerate(taker.served, start=1)}
    with transaction.atomic():
        found = _tenants_on_sqlite(types, now)
        if not found:
            return None
        *_, chosen = min(found, key=lambda row: (row[0], served.get(row[1], 0), *row[2:]))
        job: Job = Job.objects.get(pk=uuid.UUID(chosen))
        leased = Job.objects.filter(organization_id=job.organization_id, lease_slot__isnull=False)
        used = set(leased.values_list("lease_slot", flat=True))
        wanted = ((taker.slot + n) % RUNNING_PER_ORGANIZATION for n in range(RUNNING_PER_ORGANIZATION))
        slot = next(n for n in wanted if n not in used)
        columns: dict[str, Any] = {
            "attempts": job.attempts + 1,
            "attempt_running": True,
            "started_at": now,
            "lease_token": token,
            "lease_expires_at": now + LEASE,
            "lease_cluster": taker.cluster,
            "lease_pid": os.getpid(),
            "lease_slot": slot,
        }
        if job.status == JobStatus.QUEUED.value:
            move = advance(job, "begin", **columns)
        else:
            Job.objects.filter(pk=job.pk).update(**columns)
            move = Move(job.status, job.status)
        JobAttempt.objects.create(job_id=job.pk, number=columns["attempts"], from_status=move.from_, to_status=move.to)
    run = JobRun(
        job_id=job.pk,
        type=job.type,
        subject_id=job.subject_id,
        payload=job.payload,
        organization_id=job.organization_id,
        environment_id=job.environment_id,
        attempt=columns["attempts"],
        lease_token=token,
    )
    return Taken(run, slot)


def next_due(now: dt.datetime) -> dt.datetime | None:
    """When the first of what waits for a later moment falls due."""
    statement = (
        f"WITH RECURSIVE {_WAITING.format(nobody=_NOBODY[connection.vendor])}"  # noqa: S608 - constants
        f"""SELECT min((SELECT run_at FROM jobs_job WHERE organization_id = w.org AND {_WAITS} AND run_at > %s
                        ORDER BY run_at LIMIT 1)) FROM waiting w"""
    )
    postgres = connection.vendor == "postgresql"
    moment = now if postgres else Job._meta.get_field("run_at").get_db_prep_value(now, connection)
    with connection.cursor() as cursor:
        cursor.execute(statement, [moment])
        found = cursor.fetchone()[0]
    return dt.datetime.fromisoformat(found).replace(tzinfo=dt.UTC) if isinstance(found, str) else found


def _completing(run: JobRun, note: str, now: dt.datetime) -> dict[str, Any]:
    return {
        "now": now,
        "note": note[:500],
        "ending": run.job_id,
        "ending_token": run.lease_token,
        "ending_status": run.status,
        "ended_row": new_id(),
    }


def complete_and_take(run: JobRun, note: str, taker: Taker, types: Sequence[str]) -> tuple[bool, Taken | None]:
    """`complete` and `take` as one transaction: on PostgreSQL one statement and one commit a job. Raises IntegrityError,
    and then neither was done."""
    if connection.vendor != "postgresql":
        with transaction.atomic():
            return complete(run, note), take(taker, types)
    token, now = new_id(), clock.now()
    values = _completing(run, note, now) | _taking(taker, types, token, now)
    with _own_transaction():
        rows = planned_rows(_COMPLETE_AND_TAKE, values)
    return bool(rows[0][0]), _taken(rows, token)


def complete(run: JobRun, note: str) -> bool:
    """Complete the job whose attempt `run` is and write its row, in one statement or the caller's transaction; False when
    the lease is not ours any more."""
    now = clock.now()
    if connection.vendor == "postgresql":
        with _own_transaction():
            return bool(planned_rows(_COMPLETE, _completing(run, note, now))[0][0])
    with transaction.atomic():
        job: Job | None = Job.objects.filter(pk=run.job_id, lease_token=run.lease_token).first()
        if job is None:
            return False
        started = job.started_at
        move = advance(
            job,
            "complete",
            note=note[:500],
            progress=100,
            error_class="",
            error="",
            attempt_running=False,
            finished_at=now,
            **FREE,
        )
        JobAttempt.objects.create(
            job_id=job.pk,
            number=job.attempts,
            from_status=move.from_,
            to_status=move.to,
            duration_ms=max(0, int((now - started).total_seconds() * 1000)) if started else None,
        )
    return True
