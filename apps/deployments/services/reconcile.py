"""Consequences of a transition for other deployments."""

from __future__ import annotations

import uuid
from functools import partial

from django.db import transaction

from apps.approvals import services as approvals
from apps.deployments.models import Deployment
from apps.deployments.services.build_queue import queue_builds
from apps.deployments.services.supersession import refresh_current, refresh_superseded


def reconcile_after_transition(deployment: Deployment) -> None:
    """Refresh supersession and the current deployment, and queue the builds that waited for its targets.

    Call it once, after the last transition, in the same transaction.
    """
    if deployment.sequence is not None:
        refresh_superseded(deployment)
        refresh_current(deployment.environment)
    queue_builds(deployment.environment)
    notify_base_changed(deployment.environment_id)


def notify_base_changed(environment_id: uuid.UUID) -> None:
    """Re-evaluate the environment's approvals after the commit, because the bases of its agents changed."""
    transaction.on_commit(partial(approvals.complete_quorums_of_environment, environment_id), robust=True)
