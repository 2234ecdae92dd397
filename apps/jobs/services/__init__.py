"""Every write to jobs."""

from apps.jobs.services.leases import extend_lease, finish_and_take, give_up_leases, release_expired, take_job
from apps.jobs.services.moves import complete_in_transaction, end_attempt_failed, finish, hold_in_transaction
from apps.jobs.services.queue import enqueue, retry_dead_letter, wake_chore

__all__ = [
    "complete_in_transaction",
    "end_attempt_failed",
    "enqueue",
    "extend_lease",
    "finish",
    "finish_and_take",
    "give_up_leases",
    "hold_in_transaction",
    "release_expired",
    "retry_dead_letter",
    "take_job",
    "wake_chore",
]
