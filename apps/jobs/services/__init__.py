"""Every write to jobs."""

from apps.jobs.services.leases import claim, extend_lease, release_expired
from apps.jobs.services.moves import begin_attempt, complete_in_transaction, end_attempt_failed, finish
from apps.jobs.services.queue import enqueue, retry_dead_letter, wake_chore

__all__ = [
    "begin_attempt",
    "claim",
    "complete_in_transaction",
    "end_attempt_failed",
    "enqueue",
    "extend_lease",
    "finish",
    "release_expired",
    "retry_dead_letter",
    "wake_chore",
]
