"""Periodic jobs of this app."""

from __future__ import annotations

import datetime as dt

from apps.blobs import orphans, purge
from apps.jobs.registry import register_chore

GRACE = dt.timedelta(hours=24)


def register() -> None:
    """Register the jobs that finish started deletions and delete unreferenced files after a day."""
    register_chore(purge.PURGE_CHORE, every_seconds=60, run=lambda now: purge.purge_tombstones())
    register_chore("orphan_files", every_seconds=3600, run=lambda now: orphans.sweep_orphans(before=now - GRACE))
