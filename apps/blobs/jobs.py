"""Chores of this room."""

from __future__ import annotations

import datetime as dt

from apps.blobs import purge
from apps.jobs.registry import register_chore

GRACE = dt.timedelta(hours=24)


def register() -> None:
    """Deletions that were begun are finished; files that no row ever named go after a day."""
    register_chore("tree_purge", every_seconds=60, run=lambda now: purge.purge_tombstones())
    register_chore("orphan_files", every_seconds=3600, run=lambda now: purge.sweep_orphans(before=now - GRACE))
