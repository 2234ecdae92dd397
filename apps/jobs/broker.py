"""django-q2's broker over the Job table: what it hands out are turns at the table, in which a worker takes jobs itself.

A delivery carries nothing. What a worker does in its turn is in `apps.jobs.runner`: take a job (leased, attempt counted), run it,
end it, take the next, wait for more. So a job costs no hop through broker process and queue, and an idle worker waits for the
database, not for the queue. A turn ends after a few seconds and the next begins: each begins with a sign of life, which so has
gone through broker, queue and worker.
"""

from __future__ import annotations

import uuid

from django.utils import timezone
from django_q.brokers import Broker
from django_q.signing import SignedPackage

from apps.jobs.models import WAITING, Job
from apps.jobs.registry import longest_timeout
from apps.jobs.runner import TURN_SECONDS

TURN = "apps.jobs.runner.turn"
_GRACE_SECONDS = 30


class JobTableBroker(Broker):  # type: ignore[misc]
    """Always has another turn; the queue's limit is what holds it back."""

    def ping(self) -> bool:
        return True

    def info(self) -> str:
        return "the job table"

    def queue_size(self) -> int:
        return Job.objects.filter(status__in=WAITING, lease_token__isnull=True).count()

    def lock_size(self) -> int:
        return Job.objects.filter(lease_slot__isnull=False).count()

    def enqueue(self, task: str) -> None:
        raise NotImplementedError("jobs are queued by apps.jobs.services.enqueue")

    def acknowledge(self, task_id: object) -> None:
        """Nothing to do: every job of a turn was ended in its own transaction."""

    def fail(self, task_id: object) -> None:
        """Nothing to do: a lease runs out."""

    def delete(self, task_id: object) -> None:
        """Nothing to do."""

    def dequeue(self) -> list[tuple[str, str]]:
        """A turn for whichever worker is next. django-q2 ends a worker whose turn outlasts its last job's longest timeout."""
        task_id = uuid.uuid4().hex
        task = {
            "id": task_id,
            "name": "turn",
            "func": TURN,
            "args": (),
            "kwargs": {},
            "timeout": int(TURN_SECONDS + longest_timeout() + _GRACE_SECONDS),
            "started": timezone.now(),
        }
        return [(task_id, SignedPackage.dumps(task))]
