"""A process that carries out commands in a plant's database, a line of JSON each: `python -m tests.recovery.hand`."""

from __future__ import annotations

import datetime as dt
import json
import sys
import uuid
from collections import Counter
from typing import Any


def main() -> None:
    """Answer each line until there is no more."""
    import django

    django.setup()
    from django.db import Error, connection, transaction
    from django_q.models import Schedule

    from apps.blobs.models import StoredBlob
    from apps.blobs.services import record_file, store_file
    from apps.blobs.store import store
    from apps.core import clock
    from apps.core.actors import SYSTEM_ACTOR
    from apps.jobs.models import Chore, Job, JobAttempt
    from apps.jobs.services import enqueue
    from apps.tenancy.models import Environment, Organization
    from apps.tenancy.services import create_environment, create_organization, create_project
    from tests.recovery.handlers import SCHEDULED, TYPE

    def prepare() -> dict[str, str]:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE recovery_effects (subject varchar(36) NOT NULL)")
        made = [create_organization(actor=SYSTEM_ACTOR, name=name) for name in ("Acme", "Elsewhere")]
        project = create_project(actor=SYSTEM_ACTOR, organization=made[0], name="P")
        create_environment(actor=SYSTEM_ACTOR, project=project, name="dev", posture="dev")
        Schedule.objects.update(next_run=clock.now() + dt.timedelta(days=1))  # none is due until a test makes it so
        return {"acme": str(made[0].pk), "elsewhere": str(made[1].pk)}

    def queue(organization: str, count: int = 1, **payload: Any) -> list[str]:
        with transaction.atomic():
            pk = Organization.objects.get(name=organization).pk
            subjects = [uuid.uuid4() for _ in range(count)]
            for subject in subjects:
                enqueue(type=TYPE, organization_id=pk, environment_id=None, subject_id=subject, payload=payload)
        return [str(subject) for subject in subjects]

    def both(first: str, count: int, second: str) -> str:
        with transaction.atomic():
            queue(first, count)
            return queue(second)[0]

    def effects() -> list[str]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT subject FROM recovery_effects" + (" ORDER BY rowid" if sqlite else " ORDER BY ctid"))
            return [row[0] for row in cursor.fetchall()]

    def job(subject: str) -> dict[str, Any]:
        row = Job.objects.get(subject_id=subject)
        moves = JobAttempt.objects.filter(job=row).order_by("pk").values_list("from_status", "to_status")
        return {
            "status": row.status,
            "attempts": row.attempts,
            "error_class": row.error_class,
            "pid": row.lease_pid,
            "moves": [list(move) for move in moves],
        }

    def ended_before(subject: str | None = None) -> int:
        ended = Job.objects.filter(finished_at__isnull=False)
        return (
            ended.filter(finished_at__lt=Job.objects.get(subject_id=subject).finished_at) if subject else ended
        ).count()

    def chore(name: str) -> dict[str, Any]:
        row = Chore.objects.filter(pk=name).first()
        return {"error": row.last_error, "result": row.last_result} if row else {}

    def blob(size: int) -> str:
        environment = Environment.objects.get(name="dev")
        stored = store_file(environment_id=environment.pk, data=uuid.uuid4().bytes * (size // 16))
        with transaction.atomic():
            return record_file(stored).sha256

    def put_off() -> None:
        later = clock.now() + dt.timedelta(days=1)
        Job.objects.filter(status="queued", lease_token=None).update(run_at=later)

    def make_schedule_due() -> dict[str, Any]:
        environment = Environment.objects.get(name="dev")
        row = Schedule.objects.get(name=f"{SCHEDULED} {environment.pk}")
        row.next_run = clock.now()
        row.save()
        return {"subject": str(environment.pk), "schedule": row.pk}

    def schedule_is_due(schedule: int) -> bool:
        return bool(Schedule.objects.filter(pk=schedule, next_run__lte=clock.now()).exists())

    def forget_connection() -> None:
        connection.close()

    def unkept_blobs() -> int:
        missing = 0
        for row in StoredBlob.objects.all():
            with store().open(row.key) as stream:
                missing += len(stream.read()) != row.size
        return missing

    sqlite = connection.vendor == "sqlite"
    known: dict[str, Any] = {
        f.__name__: f
        for f in (
            prepare, queue, both, effects, job, ended_before, chore, blob, unkept_blobs, forget_connection, put_off, make_schedule_due,
            schedule_is_due,
        )
    }  # fmt: skip
    known["statuses"] = lambda: Counter(Job.objects.values_list("status", flat=True))
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer: Any = {"well": known[name](**arguments)}
        except (Error, OSError) as error:
            connection.close()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
