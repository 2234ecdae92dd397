"""Timeouts of targets that do not report."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

from django.db import transaction
from django.db.models import DateTimeField, F, Func, Q

from apps.core import clock
from apps.core.db import update_each
from apps.core.isolation import for_each
from apps.deployments.models import DeploymentStatus, Target, TargetStatus
from apps.deployments.services.progress import apply_target_progress
from apps.deployments.services.reconcile import reconcile_after_transition
from apps.deployments.services.transitions import lock_deployment
from apps.runtime.faults import fault_point

S, T = DeploymentStatus, TargetStatus

WAITED_FOR = Q(settled_at__isnull=True, phase_started_at__isnull=False) & (
    Q(deployment__status=S.DEPLOYING)
    | Q(deployment__status=S.ROLLING_BACK, rollback_at=F("deployment__rolling_back_at"))
)


class SecondsAfter(Func):
    """SQL function: a time plus a number of seconds. SQLite truncates to milliseconds."""

    output_field = DateTimeField()
    template = "(%(expressions)s * interval '1 second')"
    arg_joiner = " + "

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(
            compiler,
            connection,
            template="strftime('%%Y-%%m-%%d %%H:%%M:%%f', %(expressions)s || ' seconds')",
            arg_joiner=", ",
            **context,
        )


TIME_IS_OVER_AT = SecondsAfter(F("phase_started_at"), F("deployment__timeout_seconds"))
SWEEP_SECONDS = 60.0
STORAGE_EXCUSED = dt.timedelta(minutes=30)


def time_out_silent_targets(now: dt.datetime) -> int:
    """Mark targets `unreachable` that have not settled `timeout_seconds` after their phase (or rollback) began.

    One transaction per deployment; a failure does not block the others. Returns the number of targets.
    """
    overdue = (
        Target.objects.alias(time_is_over_at=TIME_IS_OVER_AT)
        .filter(WAITED_FOR, time_is_over_at__lte=now)
        .order_by("deployment_id")
        .values_list("deployment__environment_id", "deployment_id")
        .distinct()
    )
    return for_each("deployment_timeouts", list(overdue), lambda row: _time_out(*row, now), seconds=SWEEP_SECONDS)


def extend_timeout_for_storage(agent_id: uuid.UUID) -> None:
    """Restart the timeout of an agent whose bundle download failed because storage was unavailable.

    At most half an hour is added after the start of its phase or rollback. In a rollback the bundle belongs to an earlier
    deployment, and the target that is waited for to the one that is rolled back.
    """
    now = clock.now()
    Target.objects.filter(WAITED_FOR, agent_id=agent_id, sequence__isnull=False).filter(
        Q(deployment__status=S.DEPLOYING, deployment__phase_started_at__gt=now - STORAGE_EXCUSED)
        | Q(deployment__status=S.ROLLING_BACK, deployment__rolling_back_at__gt=now - STORAGE_EXCUSED)
    ).update(phase_started_at=now)


def _time_out(environment_id: uuid.UUID, deployment_id: uuid.UUID, now: dt.datetime) -> int:
    with transaction.atomic():
        deployment = lock_deployment(environment_id, deployment_id)
        if deployment is None:
            return 0
        since = now - dt.timedelta(seconds=deployment.timeout_seconds)
        silent = list(
            Target.objects.filter(WAITED_FOR, deployment=deployment, phase_started_at__lte=since).values_list(
                "pk", flat=True
            )
        )
        if not silent:
            return 0
        unsettled = Target.objects.filter(settled_at__isnull=True)
        update_each(unsettled, silent, status=T.UNREACHABLE, settled_at=now, updated_at=clock.now())
        apply_target_progress(deployment)
        reconcile_after_transition(deployment)
        fault_point("deployments.timeout.before_commit")
    fault_point("deployments.timeout.after_commit")
    return len(silent)
