"""Periodic jobs of this app."""

from __future__ import annotations

from apps.approvals.services import expire_due, notify_expired_credentials, sweep_quorums
from apps.jobs.registry import register_chore


def register() -> None:
    """Register the jobs that expire approvals and credentials and count votes each minute.

    Decisions and builds check the same conditions themselves.
    """
    register_chore("approval_expiry", every_seconds=60, run=expire_due)
    register_chore("approval_quorum", every_seconds=60, run=sweep_quorums)
    register_chore("credential_expiry", every_seconds=60, run=notify_expired_credentials)
