"""Running what was delivered, inside a worker process."""

from __future__ import annotations

import threading
import time
import uuid
from types import TracebackType

import structlog
from django.db import connection
from django_q.exceptions import TimeoutException

from apps.core.errors import NotFound
from apps.jobs import liveness
from apps.jobs.registry import JobRun, LeaseLost, PermanentJobError, handler_for
from apps.jobs.services import begin_attempt, claim, end_attempt_failed, extend_lease, finish
from apps.jobs.services.moves import LEASE
from apps.runtime.faults import fault_point

log = structlog.get_logger(__name__)

RENEW_EVERY_SECONDS = LEASE.total_seconds() * 4 / 15


class _LeaseKeeper:
    """Renews the lease from a thread of its own while the handler runs."""

    def __init__(self, run: JobRun) -> None:
        self._run = run
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=5)

    def _keep(self) -> None:
        try:
            while not self._done.wait(RENEW_EVERY_SECONDS):
                liveness.beat_from_job()
                if not extend_lease(job_id=self._run.job_id, token=self._run.lease_token):
                    return
        finally:
            connection.close()


def _public(error: BaseException) -> str:
    # what a room says on purpose is shown; the text of anything else may hold anything
    return str(error) if isinstance(error, PermanentJobError) else f"{type(error).__name__} in the handler"


def deliver(job_id: str, token: str) -> str:
    """Run one claimed job. Never raises: what goes wrong is an attempt that failed, on record.

    Called by django-q2's worker with ids only. Answers how it ended, for the log.
    """
    key = {"job_id": uuid.UUID(job_id), "token": uuid.UUID(token)}
    try:
        run = begin_attempt(**key)
    except (LeaseLost, NotFound):
        return "stale"
    fault_point("jobs.attempt.after_commit")
    spec = handler_for(run.type)
    started = time.monotonic()
    failure: BaseException | None = None
    try:
        with _LeaseKeeper(run):
            note = "no-op: superseded by a newer one" if run.payload.get("superseded") else spec.run(run)
        fault_point("jobs.handler.returned")
        finish(run, note or "")
        fault_point("jobs.finish.after_commit")
    except LeaseLost:
        return "lost"
    except TimeoutException as error:
        failure = error
    except Exception as error:  # a handler may raise anything; the attempt has failed, the worker goes on
        failure = error
    log.info(
        "job attempt",
        job_id=job_id,
        type=run.type,
        attempt=run.attempt,
        ms=int((time.monotonic() - started) * 1000),
        error=type(failure).__name__ if failure else None,
        exc_info=failure if failure and not isinstance(failure, TimeoutException | PermanentJobError) else None,
    )
    if failure is None:
        return "completed"
    try:
        end_attempt_failed(
            **key,
            error_class="Timeout" if isinstance(failure, TimeoutException) else type(failure).__name__,
            error="It took too long." if isinstance(failure, TimeoutException) else _public(failure),
            permanent=isinstance(failure, PermanentJobError),
        )
    except LeaseLost:
        return "lost"
    return "failed"


def drain(limit: int = 1000) -> int:
    """Run what is due in this process until nothing is; how many attempts there were."""
    for done in range(limit):
        claimed = claim()
        if claimed is None:
            return done
        deliver(str(claimed.job_id), str(claimed.token))
    return limit
