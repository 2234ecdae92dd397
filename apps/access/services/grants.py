"""History of granted roles, written in the transaction of the change."""

from __future__ import annotations

import datetime as dt
import uuid

from apps.access.models import Membership, RoleGrant, User
from apps.core import clock


def begin_grant(row: Membership, *, by: uuid.UUID | None, at: dt.datetime | None = None) -> None:
    """Record that the active membership `row` grants its role from `at` (now) on, granted by `by` (None: a command).

    A role that replaces another begins at the moment at which that one ends.
    """
    assert row.user_id is not None
    giver = User.objects.filter(pk=by).first() if by is not None else None
    RoleGrant.objects.create(
        organization_id=row.organization_id,
        project_id=row.project_id,
        user_id=row.user_id,
        role=row.role,
        granted_by=by,
        granted_by_name=str(giver) if giver else "",
        granted_at=at or clock.now(),
    )


def end_grant(row: Membership, *, at: dt.datetime | None = None) -> None:
    """Record that the role of the active membership `row` has ended."""
    moment = at or clock.now()
    assert row.user_id is not None
    open_ones = RoleGrant.objects.filter(
        organization_id=row.organization_id, project=row.project, user_id=row.user_id, ended_at__isnull=True
    )
    if not open_ones.update(ended_at=moment):
        # a membership from before the history existed
        RoleGrant.objects.create(
            organization_id=row.organization_id,
            project_id=row.project_id,
            user_id=row.user_id,
            role=row.role,
            granted_by=None,
            granted_at=row.created_at,
            ended_at=moment,
        )
