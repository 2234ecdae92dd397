"""Who has a job, and for how long."""

from __future__ import annotations

import os
import uuid
from collections import OrderedDict

import structlog
from django.db import IntegrityError, transaction
from django.db.models import Q

from apps.core import clock
from apps.core.db import DATABASE_AWAY, lock_row
from apps.jobs.liveness import own_cluster
from apps.jobs.models import Job
from apps.jobs.registry import JobRun, LeaseLost, handler_types
from apps.jobs.services import table
from apps.jobs.services.moves import already_finished, end_attempt_failed, lock_place
from apps.jobs.services.queue import wake_chore
from apps.runtime.faults import fault_point

log = structlog.get_logger(__name__)

LEASES_CHORE = "job_leases"
_REMEMBERED = 256
_RACES = 16


class _Memory:
    """What this process remembers from one taking to the next: its place, and whom it served."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.slot = self.pid
        self.served: OrderedDict[uuid.UUID, None] = OrderedDict()

    def taker(self) -> table.Taker:
        return table.Taker(own_cluster(), self.slot, tuple(self.served))

    def note(self, taken: table.Taken | None) -> JobRun | None:
        if taken is None:
            return None
        self.slot = taken.slot
        self.served[taken.run.organization_id] = None
        self.served.move_to_end(taken.run.organization_id)
        if len(self.served) > _REMEMBERED:
            self.served.popitem(last=False)
        return taken.run


_memory = _Memory()


def _own_memory() -> _Memory:
    global _memory
    if _memory.pid != os.getpid():
        _memory = _Memory()
    return _memory


def take_job() -> JobRun | None:
    """The job that is next in turn, leased to this process and its attempt counted; None when there is none for us.

    No organization has more than eight running (the database refuses a ninth), and they take turns, so that none starves another.
    """
    memory = _own_memory()
    for _ in range(_RACES):
        try:
            return memory.note(table.take(memory.taker(), handler_types()))
        except IntegrityError:  # another process took the same place at this moment
            memory.slot += 1
    return None


def finish_and_take(run: JobRun, note: str = "") -> tuple[bool, JobRun | None]:
    """`finish` and `take_job` as one transaction: whether the job was still ours to finish, and the next one."""
    memory = _own_memory()
    try:
        ended, taken = table.complete_and_take(run, note, memory.taker(), handler_types())
    except IntegrityError:
        memory.slot += 1
        ended, taken = table.complete(run, note), None
    following = memory.note(taken) if taken is not None else None
    return ended or already_finished(run, note), following


def extend_lease(*, job_id: uuid.UUID, token: uuid.UUID) -> bool:
    """Keep the job for another lease; False when it is not ours any more."""
    rows = Job.objects.filter(pk=job_id, lease_token=token)
    return bool(rows.update(lease_expires_at=clock.now() + table.LEASE))


def give_up_leases(*, cluster: uuid.UUID, pid: int | None = None) -> int:
    """Let the leases of a process that is known to be dead (or of a whole cluster) run out now; how many there were."""
    rows = Job.objects.filter(lease_slot__isnull=False, lease_cluster=cluster)
    if pid is not None:
        rows = rows.filter(lease_pid=pid)
    with transaction.atomic():
        found: int = rows.update(lease_expires_at=clock.now())
        if found:
            wake_chore(LEASES_CHORE)
    return found


def release_expired() -> int:
    """Take back what workers have lost: each is an attempt that failed. One that can't be taken back holds up no other. How many."""
    done = 0
    expired = Q(lease_slot__isnull=False, lease_expires_at__lte=clock.now())
    for job_id, token in list(Job.objects.filter(expired).values_list("pk", "lease_token")[:200]):
        try:
            with transaction.atomic():
                lock_place(job_id)
                if lock_row(Job.objects.filter(expired, pk=job_id, lease_token=token)) is None:
                    continue
                end_attempt_failed(
                    job_id=job_id,
                    token=token,
                    error_class="LeaseExpired",
                    error="The worker that ran it stopped renewing its lease.",
                )
        except LeaseLost:
            continue
        except DATABASE_AWAY:
            raise
        except Exception as error:  # what a room does with its dead job may raise anything; the next run tries again
            log.error("a job that was lost could not be taken back", job_id=str(job_id), exc_info=error)
            continue
        done += 1
        fault_point("jobs.lease.after_release")
        log.warning("job lease expired", job_id=str(job_id))
    return done
