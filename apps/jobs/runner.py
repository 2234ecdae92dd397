"""What a worker process does with a job that it is given: begin the attempt, run the handler, record how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator

import structlog
from django.db import Error, connection

# Not in django-q2's documentation: what it raises in a task whose time limit is over. A SystemExit, so that it has to be named.
from django_q.exceptions import TimeoutException

from apps.core.db import database_away, is_full, reason, refused_by_lock
from apps.core.errors import StorageUnavailable
from apps.jobs import process_health
from apps.jobs.registry import JobRun, LeaseLost, PermanentJobError, TryLater, handler_for
from apps.jobs.services import begin_attempt, end_attempt_failed, extend_lease, finish, take_job
from apps.jobs.services.claims import LEASE
from apps.runtime.faults import fault_point

log = structlog.get_logger(__name__)

RENEW_EVERY_SECONDS = min(5.0, LEASE.total_seconds() * 4 / 15)

_EXPECTED = (TimeoutException, PermanentJobError, TryLater, StorageUnavailable)
"""Failures that are logged without a traceback."""


class _LeaseRenewal:
    """One thread in each worker process: while a job runs, it renews the job's lease and the cluster's heartbeat."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._run: JobRun | None = None
        self._renew_at = 0.0
        threading.Thread(target=self._renew_until_exit, name="leases", daemon=True).start()

    @contextlib.contextmanager
    def renewing(self, run: JobRun) -> Iterator[None]:
        self._run, self._renew_at = run, time.monotonic() + RENEW_EVERY_SECONDS
        try:
            yield
        finally:
            self._run = None

    def _renew_until_exit(self) -> None:
        while True:
            time.sleep(RENEW_EVERY_SECONDS / 4)
            run, now = self._run, time.monotonic()
            if run is not None and now >= self._renew_at:
                self._renew_at = now + RENEW_EVERY_SECONDS
                self._renew(run)

    def _renew(self, run: JobRun) -> None:
        try:
            process_health.beat()
            extend_lease(job_id=run.job_id, token=run.lease_token)
        except Error as error:  # tried again; when it never succeeds, the lease runs out
            log.warning("a lease can't be renewed", job_id=str(run.job_id), reason=reason(error))
        finally:
            connection.close()


_renewal: _LeaseRenewal | None = None


def _own_renewal() -> _LeaseRenewal:
    global _renewal
    if _renewal is None or _renewal.pid != os.getpid():
        _renewal = _LeaseRenewal()
    return _renewal


def _public(error: BaseException) -> str:
    # the text of an error that a handler raises on purpose is shown; the text of any other may hold a secret
    on_purpose = isinstance(error, PermanentJobError | TryLater | StorageUnavailable)
    return str(error) if on_purpose else f"{type(error).__name__} in the handler"


def _is_outside(error: BaseException) -> bool:
    """Whether an attempt failed because of the environment: storage (away or full), network, database."""
    away = isinstance(error, TryLater | StorageUnavailable | ConnectionError | TimeoutError)
    return away or database_away(error) or refused_by_lock(error) or is_full(error)


def perform(job_id: uuid.UUID, lease: uuid.UUID) -> str:
    """The django-q2 task: one attempt at the job that the broker claimed under the token `lease`.

    Answers `completed`, `failed`, or `lost` when the lease has ended. Errors are recorded on the job and not raised.
    """
    try:
        process_health.beat_when_due()
        run = begin_attempt(job_id, lease)
    except LeaseLost:
        return "lost"
    except Error as error:
        log.warning("a job can't begin; its claim runs out", job_id=str(job_id), reason=reason(error))
        connection.close()
        return "lost"
    return run_attempt(run)


def run_attempt(run: JobRun) -> str:
    """Run the handler of an attempt that has begun, and record how it ended. Answers as `perform`."""
    started = time.monotonic()
    failure: BaseException | None = None
    fault_point("jobs.begin.after_commit")
    try:
        spec = handler_for(run.type)
        with _own_renewal().renewing(run):
            note = "no-op: superseded by a newer one" if run.payload.get("superseded") else spec.run(run)
            signal.alarm(0)  # django-q2's time limit is the handler's; it must not interrupt the end of the attempt
        fault_point("jobs.handler.returned")
        finish(run, note or "")
        fault_point("jobs.finish.after_commit")
    except LeaseLost:
        return "lost"
    except (Exception, SystemExit) as error:  # a handler may raise anything; TimeoutException is a SystemExit
        signal.alarm(0)
        failure = error
        if isinstance(error, TimeoutException) and not connection.in_atomic_block:
            connection.close()  # it may have been in the middle of a statement
    log.info(
        "job attempt",
        job_id=str(run.job_id),
        type=run.type,
        attempt=run.attempt,
        ms=int((time.monotonic() - started) * 1000),
        error=type(failure).__name__ if failure else None,
        exc_info=failure if failure and not isinstance(failure, _EXPECTED) else None,
        reason=reason(failure) if failure else None,
    )
    return "completed" if failure is None else _end_failed(run, failure)


def _end_failed(run: JobRun, failure: BaseException) -> str:
    timeout = isinstance(failure, TimeoutException)
    try:
        end_attempt_failed(
            job_id=run.job_id,
            token=run.lease_token,
            error_class="Timeout" if timeout else type(failure).__name__,
            error="It took too long." if timeout else _public(failure),
            permanent=isinstance(failure, PermanentJobError),
            outside=_is_outside(failure),
        )
    except LeaseLost:
        return "lost"
    except Exception as error:  # the database is away, or the app's own `on_dead` broke: the lease runs out
        log.error("a failed attempt could not be recorded", job_id=str(run.job_id), exc_info=error)
        if not connection.in_atomic_block:
            connection.close()
        return "lost"
    return "failed"


def drain(limit: int = 1000) -> int:
    """Run what is due in this process until nothing is; how many attempts there were."""
    for done in range(limit):
        run = take_job()
        if run is None:
            return done
        run_attempt(run)
    return limit
