"""Every write to jobs.

- `queue`: put work in the queue; `claims`: leases of clusters
- `attempts`: begin and end an attempt
"""

from apps.jobs.services.attempts import (
    begin_attempt,
    complete_in_transaction,
    end_attempt_failed,
    finish,
    hold_in_transaction,
    release_expired,
    take_job,
)
from apps.jobs.services.claims import Claim, Claimed, claim_jobs, extend_lease, give_up_leases
from apps.jobs.services.queue import enqueue, retry_dead_letter, wake_chore

__all__ = [
    "Claim",
    "Claimed",
    "begin_attempt",
    "claim_jobs",
    "complete_in_transaction",
    "end_attempt_failed",
    "enqueue",
    "extend_lease",
    "finish",
    "give_up_leases",
    "hold_in_transaction",
    "release_expired",
    "retry_dead_letter",
    "take_job",
    "wake_chore",
]
