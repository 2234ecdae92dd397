"""django-q2's broker over the Job table, which is the queue.

The pusher process asks it for tasks, the sentinel process gives it the schedules that are due.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from typing import Any

import structlog
from django.conf import settings
from django.db import connection
from django.utils import timezone
from django_q.brokers import Broker

# Not in django-q2's documentation: the package format that its pusher unpacks. The documented way to make one, `async_task`,
# gives it to `enqueue`, while ours are made when a worker is free.
from django_q.signing import SignedPackage

from apps.core import clock, wake
from apps.core.db import reason
from apps.jobs.models import Job
from apps.jobs.process_health import BEAT_EVERY_SECONDS, own_cluster
from apps.jobs.registry import handler_for
from apps.jobs.schedules import queue_scheduled
from apps.jobs.services.claims import Claim, claim_jobs, waiting_jobs
from apps.jobs.services.queue import WAKE_JOBS
from apps.runtime.faults import fault_point

log = structlog.get_logger(__name__)

LONGEST_WAIT = 0.5


def _package(function: str, *args: Any, timeout: int) -> tuple[str, str]:
    task_id = uuid.uuid4().hex
    task = {
        "id": task_id,
        "name": function.rsplit(".", 1)[1],
        "func": function,
        "args": args,
        "kwargs": {},
        "timeout": timeout,
        "started": timezone.now(),
    }
    return task_id, SignedPackage.dumps(task)


def _task(claim: Claim) -> tuple[str, str]:
    timeout = handler_for(claim.type).timeout_seconds
    return _package("apps.jobs.runner.perform", claim.job_id, claim.lease, timeout=timeout)


class JobTableBroker(Broker):  # type: ignore[misc]
    """Claims as many jobs as the cluster has free workers. Acknowledging does nothing: each attempt records its own end, and
    the lease of one that does not runs out."""

    def __init__(self, list_key: str | None = None) -> None:
        super().__init__(list_key)
        self._delivered_at = float("-inf")

    def ping(self) -> bool:
        return True

    def info(self) -> str:
        return "the job table"

    def queue_size(self) -> int:
        return waiting_jobs().count()

    def lock_size(self) -> int:
        return Job.objects.filter(lease_slot__isnull=False).count()

    def enqueue(self, task: str) -> None:
        """Queue the job of a schedule that is due. Errors are logged and not raised: django-q2 runs all due schedules in one
        transaction, and one that fails must not hold up the others."""
        try:
            queue_scheduled(**SignedPackage.loads(task)["kwargs"])
        except Exception as error:  # whatever is wrong with one row; its transaction is a savepoint
            log.error("a schedule could not queue its job", reason=reason(error), exc_info=error)

    def dequeue(self) -> list[tuple[str, str]]:
        """A task for each job that a free worker can begin now; else wait for at most half a second, and answer none.

        Never raises: django-q2's pusher stops for ten seconds and then ends when its broker raises.
        """
        try:
            return self._next()
        except Exception as error:  # the database is away, or anything else: the next call tries again
            log.warning("the queue can't be read", reason=reason(error))
            with contextlib.suppress(Exception):
                connection.close()
            time.sleep(LONGEST_WAIT)
            return []

    def _next(self) -> list[tuple[str, str]]:
        seen = wake.ticket(WAKE_JOBS)
        claimed = claim_jobs(cluster=own_cluster(), at_most=settings.BYTEOR_JOB_WORKERS)
        if claimed.claims:
            fault_point("jobs.claim.after_commit")
            self._delivered_at = time.monotonic()
            return [_task(claim) for claim in claimed.claims]
        if claimed.free > 0 and self._beat_is_due():
            self._delivered_at = time.monotonic()
            return [_package("apps.jobs.process_health.beat", timeout=int(BEAT_EVERY_SECONDS))]
        due = claimed.next_due
        later = (due - clock.now()).total_seconds() if due is not None else LONGEST_WAIT
        wake.wait(WAKE_JOBS, min(LONGEST_WAIT, max(0.01, later)), since=seen)
        return []

    def _beat_is_due(self) -> bool:
        # a worker that begins a job beats by itself, so an empty task is needed only while nothing else is delivered
        return time.monotonic() - self._delivered_at >= BEAT_EVERY_SECONDS
