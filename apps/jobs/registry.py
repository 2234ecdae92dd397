"""What can be run: handlers of jobs, chores and schedules, registered by the apps above in their `ready()`."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from apps.core.errors import NotFound
from apps.jobs.models import Job, JobStatus


class PermanentJobError(Exception):
    """It can never succeed: no further attempt is made. The text is kept and shown; no secrets."""


class TryLater(Exception):
    """What the job needs from outside is away, through no fault of its own: the attempt does not count, for up to half an
    hour. The text is kept and shown; no secrets. Storage, database and network errors mean the same without it."""


class LeaseLost(Exception):
    """The lease has ended: another worker may have the job, and this attempt must not write any more."""


@dataclass(frozen=True, slots=True)
class JobRun:
    """One attempt at one job, as its handler sees it."""

    job_id: uuid.UUID
    type: str
    subject_id: uuid.UUID
    payload: Mapping[str, Any]
    organization_id: uuid.UUID
    environment_id: uuid.UUID | None
    attempt: int
    lease_token: uuid.UUID

    @property
    def status(self) -> str:
        """The job's while this attempt runs."""
        return JobStatus.RUNNING.value if self.attempt == 1 else JobStatus.RETRYING.value

    def progress(self, percent: int) -> None:
        """Record the progress in percent, 0–100. Raises LeaseLost."""
        rows = Job.objects.filter(pk=self.job_id, lease_token=self.lease_token)
        if not rows.update(progress=max(0, min(100, percent))):
            raise LeaseLost(str(self.job_id))

    def ensure_lease(self) -> None:
        """Raise LeaseLost unless this attempt still holds the job."""
        if not Job.objects.filter(pk=self.job_id, lease_token=self.lease_token).exists():
            raise LeaseLost(str(self.job_id))


Handler = Callable[[JobRun], str | None]


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """A handler and how it is retried: exponential from `base_seconds` to `cap_seconds` with full jitter."""

    type: str
    run: Handler
    max_attempts: int
    base_seconds: float
    cap_seconds: float
    timeout_seconds: int
    on_dead: Callable[[Job], None] | None


@dataclass(frozen=True, slots=True)
class ChoreSpec:
    """A chore: `run(now)` answers how many things it did. One that takes longer than `timeout` is stuck."""

    name: str
    every: dt.timedelta
    run: Callable[[dt.datetime], int]
    timeout: dt.timedelta


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """A job type that is queued every `minutes` for each node of `level` (`organization` or `environment`)."""

    type: str
    level: str
    minutes: int


_handlers: dict[str, HandlerSpec] = {}
_chores: dict[str, ChoreSpec] = {}
_schedules: list[ScheduleSpec] = []


def register_handler(
    type: str,
    run: Handler,
    *,
    max_attempts: int = 5,
    base_seconds: float = 2,
    cap_seconds: float = 300,
    timeout_seconds: int = 300,
    on_dead: Callable[[Job], None] | None = None,
) -> None:
    """Let `run` do the jobs of `type`. It must be safe to run twice; `on_dead(job)` is called in the transaction that buries."""
    _handlers[type] = HandlerSpec(type, run, max_attempts, base_seconds, cap_seconds, timeout_seconds, on_dead)


def handler_for(type: str) -> HandlerSpec:
    """The handler of a type; NotFound when no app registered one."""
    try:
        return _handlers[type]
    except KeyError:
        raise NotFound(f"No handler is registered for jobs of type {type}.") from None


def handler_types() -> list[str]:
    """Every type that has a handler."""
    return sorted(_handlers)


def register_schedule(type: str, *, level: str, minutes: int) -> None:
    """Queue a job of `type` every `minutes` for each node of `level`: the `subject_id` of its jobs is the node's."""
    _schedules.append(ScheduleSpec(type, level, minutes))


def schedules(level: str) -> list[ScheduleSpec]:
    """The schedules that each node of `level` has."""
    return [spec for spec in _schedules if spec.level == level]


def register_chore(
    name: str, *, every_seconds: float, run: Callable[[dt.datetime], int], timeout_seconds: float = 600
) -> None:
    """Run `run(now)` every so often, at one place at a time. It must be safe to end anywhere and to run again."""
    _chores[name] = ChoreSpec(name, dt.timedelta(seconds=every_seconds), run, dt.timedelta(seconds=timeout_seconds))


def chores() -> list[ChoreSpec]:
    """Every registered chore."""
    return list(_chores.values())
