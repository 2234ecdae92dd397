"""Recently granted roles: two people who depend on each other are not independent reviewers.

A user can't approve while their right to decide, or the requester's right to request, rests on a role that one of them
granted the other in the last 24 hours, also through other people, or that a third person granted both. Commands grant
no such role. A role that was held before the request and is granted again by another user than the requester counts
from its first grant.
"""

from __future__ import annotations

import datetime as dt
import uuid
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from apps.access.models import RESET_WAIT, RoleGrant, User
from apps.access.roles import GRANTS, Permission, Role
from apps.tenancy.scope import Scope

RECENT = dt.timedelta(hours=24)
_NEVER = dt.datetime.max.replace(tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class HeldRole:
    """A role of a user on the organization (`on_project` is False) or on the project."""

    user: uuid.UUID
    on_project: bool
    role: Role
    by: uuid.UUID | None
    at: dt.datetime
    until: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Period:
    """An unbroken time in which a user could operate an environment, and the role that began it."""

    start: dt.datetime
    end: dt.datetime | None
    begun_by: HeldRole


def _deciding(on_organization: HeldRole | None, on_project: HeldRole | None) -> HeldRole | None:
    """Return the role that applies to the project: an org_admin's, else the project's, else the organization's."""
    if on_organization is not None and on_organization.role is Role.ORG_ADMIN:
        return on_organization
    return on_project or on_organization


def periods_of(roles: Collection[HeldRole]) -> list[Period]:
    """Return the periods in which a user could operate the environment, in order. A user has one role per level at a
    time."""
    edges = sorted({held.at for held in roles} | {held.until for held in roles if held.until is not None})
    coming = sorted(roles, key=lambda held: held.at, reverse=True)
    latest: dict[bool, HeldRole] = {}
    found: list[Period] = []
    for start, end in zip(edges, [*edges[1:], None], strict=True):
        while coming and coming[-1].at <= start:
            held = coming.pop()
            latest[held.on_project] = held
        in_force = {level: held for level, held in latest.items() if held.until is None or held.until > start}
        deciding = _deciding(in_force.get(False), in_force.get(True))
        if deciding is None or Permission.OPERATE_ENVIRONMENT not in GRANTS[deciding.role]:
            continue
        if found and found[-1].end == start:
            found[-1] = replace(found[-1], end=end)
        else:
            found.append(Period(start, end, deciding))
    return found


@dataclass(frozen=True, slots=True)
class Request:
    """The requester and the time of the request."""

    requester: uuid.UUID
    at: dt.datetime


class RoleHistory:
    """History of roles in one project and its organization."""

    def __init__(self, roles: Iterable[HeldRole]) -> None:
        by_user: dict[uuid.UUID, list[HeldRole]] = {}
        for held in roles:
            by_user.setdefault(held.user, []).append(held)
        self._periods = {user: periods_of(held) for user, held in by_user.items()}

    def rests_on(
        self, user: uuid.UUID, request: Request, *, at: dt.datetime, now: dt.datetime
    ) -> tuple[uuid.UUID, dt.datetime] | None:
        """Return who granted `user`, in the 24 hours before `now`, the right that they had at `at` (or last before),
        and when that ends.

        None if the right is older, has no grantor, or was granted again.
        """
        periods = self._periods.get(user, [])
        number = bisect_right(periods, at, key=lambda period: period.start)
        until = _NEVER
        while number:
            number -= 1
            last = periods[number]
            giver = last.begun_by.by
            began = min(last.start, last.begun_by.at)
            if giver is None or began <= now - RECENT:
                return None
            until = min(until, began + RECENT)
            if giver == request.requester or not number or periods[number - 1].start >= request.at:
                return giver, until
        return None

    def _chain(
        self, user: uuid.UUID, request: Request, *, at: dt.datetime, now: dt.datetime
    ) -> tuple[set[uuid.UUID], dt.datetime]:
        """Return `user` and the people on whom their right rests, and when the first link ends."""
        chain, ends = {user}, _NEVER
        link = self.rests_on(user, request, at=at, now=now)
        while link is not None:
            giver, until = link
            ends = min(ends, until)
            if giver in chain:
                break
            chain.add(giver)
            link = self.rests_on(giver, request, at=now, now=now)
        return chain, ends

    def _depend_until(self, reviewer: uuid.UUID, request: Request, *, now: dt.datetime) -> dt.datetime | None:
        """Return when the dependence of the two changes next, or None if they are independent."""
        if reviewer == request.requester:
            return None
        mine, mine_ends = self._chain(reviewer, request, at=now, now=now)
        theirs, theirs_ends = self._chain(request.requester, request, at=request.at, now=now)
        return None if mine.isdisjoint(theirs) else min(mine_ends, theirs_ends)

    def depend(self, reviewer: uuid.UUID, request: Request, *, now: dt.datetime) -> bool:
        """Return whether the reviewer and the requester depend on each other, or both on a third person."""
        return self._depend_until(reviewer, request, now=now) is not None

    def may_approve_at(self, reviewer: uuid.UUID, request: Request, *, now: dt.datetime) -> dt.datetime:
        """Return the earliest time at which the reviewer may approve: `now`, or later. Links only end over time."""
        moment = now
        while (changes := self._depend_until(reviewer, request, now=moment)) is not None:
            moment = changes
        return moment


class RoleHistories:
    """Role histories of organizations, limited to those with grants in the last 24 hours.

    One query, at the first use.
    """

    def __init__(self, organization_ids: Collection[uuid.UUID], now: dt.datetime) -> None:
        self._now = now
        self._organization_ids = organization_ids
        self._known: dict[tuple[uuid.UUID, uuid.UUID | None], RoleHistory] = {}

    @cached_property
    def _rows(self) -> list[RoleGrant]:
        here = RoleGrant.objects.filter(organization__in=self._organization_ids)
        recent = here.filter(granted_at__gt=self._now - RECENT).exclude(granted_by=None)
        rows = here.filter(user__in=recent.values("user_id")).select_related("user").order_by("granted_at", "pk")
        return list(rows) if self._organization_ids else []

    def at(self, scope: Scope) -> RoleHistory:
        """Return the history for the project of `scope`."""
        key = (scope.organization_id, scope.project_id)
        if key not in self._known:
            self._known[key] = RoleHistory(
                HeldRole(
                    user=row.user_id,
                    on_project=row.project_id is not None,
                    role=Role(row.role),
                    by=row.granted_by,
                    at=row.granted_at,
                    until=row.ended_at,
                )
                for row in self._rows
                if row.organization_id == scope.organization_id and row.project_id in (None, scope.project_id)
            )
        return self._known[key]

    def recently_granted(self, scope: Scope) -> list[RoleGrant]:
        """Return the roles in the project of `scope` that a user granted in the last 24 hours, oldest first."""
        return [
            row
            for row in self._rows
            if row.organization_id == scope.organization_id
            and row.project_id in (None, scope.project_id)
            and row.ended_at is None
            and row.granted_by is not None
            and row.granted_at > self._now - RECENT
        ]


def approving_from(
    people: Collection[uuid.UUID],
    *,
    scope: Scope,
    requester: uuid.UUID | None,
    requested_at: dt.datetime,
    now: dt.datetime,
    histories: RoleHistories | None = None,
    resets: Mapping[uuid.UUID, dt.datetime | None] | None = None,
) -> dict[uuid.UUID, dt.datetime]:
    """Return those of `people` who can't approve a request of `requester` now, and from when they can.

    They got their role or a new password recently. Pass `histories` and `resets` (of all of `people`) if they are read
    already.
    """
    found: dict[uuid.UUID, dt.datetime] = {}
    if requester is not None:
        histories = histories or RoleHistories([scope.organization_id], now)
        history, request = histories.at(scope), Request(requester, requested_at)
        for person in people:
            moment = history.may_approve_at(person, request, now=now)
            if moment > now:
                found[person] = moment
    if resets is None:
        recently_reset = User.objects.filter(pk__in=list(people), password_reset_at__gt=now - RESET_WAIT)
        resets = dict(recently_reset.values_list("pk", "password_reset_at"))
    for person in people:
        reset_at = resets.get(person)
        if reset_at is not None and reset_at > now - RESET_WAIT:
            found[person] = max(found.get(person, now), reset_at + RESET_WAIT)
    return found
