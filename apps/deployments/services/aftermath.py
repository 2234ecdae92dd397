"""What follows from a move, whichever it was."""

from __future__ import annotations

from apps.deployments.models import Deployment
from apps.deployments.services.current import refresh_current, refresh_superseded
from apps.deployments.services.queue import queue_builds


def after_moves(deployment: Deployment) -> None:
    """Bring supersession and the current deployment in line, and queue the builds that its targets were waited for by.

    Call it once, after the last move, in the same transaction.
    """
    if deployment.sequence is not None:
        refresh_superseded(deployment)
        refresh_current(deployment.environment)
    queue_builds(deployment.environment)
