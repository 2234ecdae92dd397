"""Jobs and chores of deployments."""

from __future__ import annotations

from apps.deployments.services.bakes import end_due_bakes
from apps.deployments.services.build_queue import BUILD_JOB
from apps.deployments.services.builds import (
    NothingToDo,
    UnbuildableError,
    finish_build,
    give_up_build,
    make_archive,
    start_build,
)
from apps.deployments.services.timeouts import time_out_silent_targets
from apps.jobs import registry
from apps.jobs.models import Job
from apps.jobs.registry import JobRun, PermanentJobError
from apps.jobs.services import complete_in_transaction, hold_in_transaction
from apps.runtime.faults import fault_point

TIMEOUTS_EVERY_SECONDS = 2
BAKES_EVERY_SECONDS = 1


def run_build(run: JobRun) -> str | None:
    """Compile, sign and store the bundle of the deployment `run.subject_id`, and assign its targets.

    Safe to repeat: the inputs of a build are fixed in the row, and only one of two concurrent runs completes it.
    """
    if run.environment_id is None:
        raise PermanentJobError("a build belongs to an environment")
    try:
        work = start_build(
            deployment_id=run.subject_id,
            environment_id=run.environment_id,
            hold=lambda: hold_in_transaction(run),
            complete=lambda note: complete_in_transaction(run, note),
        )
        if isinstance(work, NothingToDo):
            return work.note
        fault_point("deployments.build.started")
        run.progress(30)
        built = make_archive(work)
        fault_point("deployments.build.signed")
    except UnbuildableError as error:
        raise PermanentJobError(str(error)) from error
    run.progress(80)
    run.ensure_lease()
    return finish_build(work, built, complete=lambda: complete_in_transaction(run))


def bury_build(job: Job) -> None:
    """Fail the deployment when its build job is dead."""
    if job.environment_id is not None:
        give_up_build(deployment_id=job.subject_id, environment_id=job.environment_id, error=job.error)


def register() -> None:
    """Register the jobs and chores."""
    registry.register_handler(
        BUILD_JOB, run_build, max_attempts=5, base_seconds=1, cap_seconds=60, timeout_seconds=60, on_dead=bury_build
    )
    registry.register_chore("deployment_timeouts", every_seconds=TIMEOUTS_EVERY_SECONDS, run=time_out_silent_targets)
    registry.register_chore("deployment_bakes", every_seconds=BAKES_EVERY_SECONDS, run=end_due_bakes)
