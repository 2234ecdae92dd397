"""Chores of this room."""

from __future__ import annotations

from apps.approvals.services import expire_due, tell_expired_credentials
from apps.jobs.registry import register_chore


def register() -> None:
    """Both clocks are swept each minute (and looked at again at every decision and build)."""
    register_chore("approval_expiry", every_seconds=60, run=expire_due)
    register_chore("credential_expiry", every_seconds=60, run=tell_expired_credentials)
