"""Running jobs, inside a worker process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import structlog
from django.db import Error, connection
from django_q.exceptions import TimeoutException
from django_q.timeout import TimeoutHandler

from apps.core import clock, wake
from apps.core.db import reason
from apps.jobs import liveness
from apps.jobs.registry import JobRun, LeaseLost, PermanentJobError, handler_for
from apps.jobs.services import end_attempt_failed, extend_lease, finish, finish_and_take, take_job
from apps.jobs.services.queue import WAKE_JOBS
from apps.jobs.services.table import LEASE, next_due
from apps.jobs.stopping import stopping
from apps.runtime.faults import fault_point

log = structlog.get_logger(__name__)

TURN_SECONDS = liveness.BEAT_EVERY_SECONDS
LONGEST_WAIT = 0.5
RENEW_EVERY_SECONDS = min(5.0, LEASE.total_seconds() * 4 / 15)
KILL_AFTER_SECONDS = 3.0


@dataclass(slots=True)
class _Held:
    run: JobRun
    renew_at: float
    kill_at: float


class _LeaseKeeper:
    """One thread a process: renews the lease of the job that runs, gives signs of life, and ends the process when the job
    outlasts its timeout although it was told to stop."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._held: _Held | None = None
        threading.Thread(target=self._keep, name="leases", daemon=True).start()

    @contextlib.contextmanager
    def holding(self, run: JobRun, timeout: float) -> Iterator[None]:
        now = time.monotonic()
        self._held = _Held(run, now + RENEW_EVERY_SECONDS, now + timeout + KILL_AFTER_SECONDS)
        try:
            yield
        finally:
            self._held = None

    def _keep(self) -> None:
        while True:
            time.sleep(RENEW_EVERY_SECONDS / 4)
            held, now = self._held, time.monotonic()
            if held is None:
                continue
            if now >= held.kill_at:
                log.error(
                    "job does not end although its time is over; its worker is killed", job_id=str(held.run.job_id)
                )
                os.kill(os.getpid(), signal.SIGKILL)
            if now >= held.renew_at:
                held.renew_at = now + RENEW_EVERY_SECONDS
                self._renew(held.run)

    def _renew(self, run: JobRun) -> None:
        try:
            liveness.beat()
            extend_lease(job_id=run.job_id, token=run.lease_token)
        except Error as error:  # tried again; when it never succeeds, the lease runs out
            log.warning("a lease can't be renewed", job_id=str(run.job_id), reason=reason(error))
        finally:
            connection.close()


_keeper: _LeaseKeeper | None = None


def _own_keeper() -> _LeaseKeeper:
    global _keeper
    if _keeper is None or _keeper.pid != os.getpid():
        _keeper = _LeaseKeeper()
    return _keeper


def _public(error: BaseException) -> str:
    # what a room says on purpose is shown; the text of anything else may hold anything
    return str(error) if isinstance(error, PermanentJobError) else f"{type(error).__name__} in the handler"


def perform(run: JobRun) -> str:
    """Run the job that was taken. Never raises: what goes wrong is an attempt that failed, on record.

    Answers how it ended: `completed`, `failed`, or `lost` when somebody else has it by now.
    """
    return _perform(run, take_next=False)[0]


def _perform(run: JobRun, *, take_next: bool) -> tuple[str, JobRun | None]:
    """The same; with `take_next` the next job is taken in the transaction that completes this one, and answered too."""
    started = time.monotonic()
    failure: BaseException | None = None
    following: JobRun | None = None
    fault_point("jobs.take.after_commit")
    try:
        spec = handler_for(run.type)
        with _own_keeper().holding(run, spec.timeout_seconds), TimeoutHandler(spec.timeout_seconds):
            note = "no-op: superseded by a newer one" if run.payload.get("superseded") else spec.run(run)
        fault_point("jobs.handler.returned")
        if take_next:
            ours, following = finish_and_take(run, note or "")
            if not ours:
                return "lost", following
        else:
            finish(run, note or "")
        fault_point("jobs.finish.after_commit")
    except LeaseLost:
        return "lost", None
    except TimeoutException as error:
        failure = error
        if not connection.in_atomic_block:
            connection.close()  # it may have been in the middle of a statement
    except (Exception, SystemExit) as error:  # a handler may raise anything; the attempt has failed, the worker goes on
        failure = error
    log.info(
        "job attempt",
        job_id=str(run.job_id),
        type=run.type,
        attempt=run.attempt,
        ms=int((time.monotonic() - started) * 1000),
        error=type(failure).__name__ if failure else None,
        exc_info=failure if failure and not isinstance(failure, TimeoutException | PermanentJobError) else None,
    )
    return ("completed" if failure is None else _end_failed(run, failure)), following


def _end_failed(run: JobRun, failure: BaseException) -> str:
    timeout = isinstance(failure, TimeoutException)
    try:
        end_attempt_failed(
            job_id=run.job_id,
            token=run.lease_token,
            error_class="Timeout" if timeout else type(failure).__name__,
            error="It took too long." if timeout else _public(failure),
            permanent=isinstance(failure, PermanentJobError),
        )
    except LeaseLost:
        return "lost"
    except Exception as error:  # the database is away, or the room's own `on_dead` broke: the lease runs out
        log.error("a failed attempt could not be recorded", job_id=str(run.job_id), exc_info=error)
        if not connection.in_atomic_block:
            connection.close()
        return "lost"
    return "failed"


def turn() -> None:
    """A worker's turn: a sign of life, then every job that there is, for a few seconds; the last one may take longer."""
    until = time.monotonic() + TURN_SECONDS
    run: JobRun | None = None
    try:
        liveness.beat()
        while run is not None or (not stopping() and time.monotonic() < until):
            heard = wake.ticket(WAKE_JOBS)
            run = run or take_job()
            if run is None:
                _wait(heard, until - time.monotonic())
                continue
            more = not stopping() and time.monotonic() < until
            _, run = _perform(run, take_next=more)
    except Error as error:
        log.warning("the queue can't be read", reason=reason(error))
        connection.close()
        time.sleep(0.5)


def _wait(heard: int, left: float) -> None:
    now = clock.now()
    due = next_due(now)
    later = (due - now).total_seconds() if due is not None else LONGEST_WAIT
    wake.wait(WAKE_JOBS, min(LONGEST_WAIT, left, max(0.01, later)), since=heard)


def drain(limit: int = 1000) -> int:
    """Run what is due in this process until nothing is; how many attempts there were."""
    for done in range(limit):
        run = take_job()
        if run is None:
            return done
        perform(run)
    return limit
