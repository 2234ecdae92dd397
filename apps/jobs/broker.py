"""django-q2's broker over the Job table: what it dequeues are leases, what it carries are ids."""

from __future__ import annotations

import time
import uuid

import structlog
from django.db import DatabaseError, connection
from django.utils import timezone
from django_q.brokers import Broker
from django_q.signing import SignedPackage

from apps.core import wake
from apps.jobs import liveness
from apps.jobs.models import WAITING, Job
from apps.jobs.registry import handler_for
from apps.jobs.services import claim
from apps.jobs.services.queue import WAKE_JOBS
from apps.runtime.faults import fault_point

log = structlog.get_logger(__name__)

LONGEST_WAIT = 1.0


class JobTableBroker(Broker):  # type: ignore[misc]
    """Claims due jobs and sends a heartbeat through the same pipeline every few seconds."""

    _next_beat = 0.0

    def ping(self) -> bool:
        return True

    def info(self) -> str:
        return "the job table"

    def queue_size(self) -> int:
        return Job.objects.filter(status__in=WAITING, lease_token__isnull=True).count()

    def lock_size(self) -> int:
        return Job.objects.filter(lease_token__isnull=False).count()

    def enqueue(self, task: str) -> None:
        raise NotImplementedError("jobs are queued by apps.jobs.services.enqueue")

    def acknowledge(self, task_id: object) -> None:
        """Nothing to do: the runner ended the job in its own transaction."""

    def fail(self, task_id: object) -> None:
        """Nothing to do: the lease runs out."""

    def delete(self, task_id: object) -> None:
        """Nothing to do."""

    def dequeue(self) -> list[tuple[str, str]]:
        """One claimed job, or a heartbeat that is due, or nothing after at most a second."""
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + liveness.BEAT_EVERY_SECONDS
            return [self._package("beat", "apps.jobs.liveness.beat", (), 30)]
        try:
            claimed = claim()
            if claimed is None:
                due = Job.objects.filter(status__in=WAITING, lease_token__isnull=True).order_by("run_at")
                soonest = due.values_list("run_at", flat=True).first()
                pause = LONGEST_WAIT
                if soonest is not None:
                    pause = min(pause, max(0.02, (soonest - timezone.now()).total_seconds()))
                wake.wait(WAKE_JOBS, pause)
                return []
        except DatabaseError as error:
            log.warning("the queue can't be read", error=type(error).__name__)
            connection.close()
            time.sleep(0.5)
            return []
        fault_point("jobs.claim.after_commit")
        return [
            self._package(
                claimed.type,
                "apps.jobs.runner.deliver",
                (str(claimed.job_id), str(claimed.token)),
                handler_for(claimed.type).timeout_seconds,
            )
        ]

    def _package(self, name: str, func: str, args: tuple[str, ...], timeout: int) -> tuple[str, str]:
        task_id = uuid.uuid4().hex
        task = {
            "id": task_id,
            "name": name,
            "func": func,
            "args": args,
            "kwargs": {},
            "timeout": timeout,
            "started": timezone.now(),
        }
        return task_id, SignedPackage.dumps(task)
