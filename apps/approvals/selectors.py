"""Queries on approvals: current facts, who may decide, and what needs a user's decision."""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import rfc8785
from django.db.models import Exists, OuterRef, Q, QuerySet

from apps.access.models import RoleGrant, User
from apps.access.policy import Allowed, Denied, can
from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.access.selectors import environments_where, people_who_may, people_with
from apps.approvals.models import Approval, ApprovalStatus, Decision
from apps.approvals.policy import weakened_until, weakenings
from apps.approvals.registry import subject_of
from apps.approvals.reviewers import Request, RoleHistories, approving_from
from apps.core import clock
from apps.core.db import require_row
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import scope_of


def digest_of(approval: Approval, base: Mapping[str, str | None]) -> str:
    """`sha256:` of the RFC 8785 form of what is being decided, with `base`.

    The same for every viewer, without time, votes or liveness.
    """
    body: dict[str, Any] = {
        "approval_id": str(approval.pk),
        "spec_hash": approval.spec_hash,
        "config_hash": approval.config_hash,
        "capabilities": sorted(approval.capabilities),
        "strategy": approval.strategy,
        "policy": approval.policy,
        "targets": sorted(approval.target_agent_ids),
        "base": dict(base),
    }
    return "sha256:" + hashlib.sha256(rfc8785.dumps(body)).hexdigest()


@dataclass(frozen=True, slots=True)
class CurrentFacts:
    """The current facts of an approval: the digest to decide on, its base, and the votes that count or no longer count."""

    shown_digest: str
    base: dict[str, str | None]
    counting: tuple[Decision, ...]
    stale: tuple[Decision, ...]
    base_moved: bool

    @property
    def approvals(self) -> int:
        """Number of users whose approval counts."""
        return len({decision.reviewer_id for decision in self.counting if decision.decision == "approve"})

    def counts(self, reviewer_id: uuid.UUID | None) -> bool:
        """Return whether a vote of this user counts."""
        return any(decision.reviewer_id == reviewer_id for decision in self.counting)


def current_facts(approval: Approval) -> CurrentFacts:
    """Return the current facts of an approval. The base is looked up while it is pending and fixed once it is decided."""
    return current_facts_of_all([approval])[approval.pk]


def current_facts_of_all(
    approvals: Sequence[Approval],
    histories: RoleHistories | None = None,
    operators: Collection[tuple[uuid.UUID, uuid.UUID]] | None = None,
) -> dict[uuid.UUID, CurrentFacts]:
    """Return the current facts of each of `approvals`, in four queries, and one more for each kind of subject after the first.

    Pass the `histories` of their organizations, and the `operators` (environment, user) of their environments, if they are
    read already.
    """
    decisions: dict[uuid.UUID, list[Decision]] = {approval.pk: [] for approval in approvals}
    for decision in Decision.objects.filter(approval__in=list(decisions)).order_by("pk"):
        decisions[decision.approval_id].append(decision)
    pending = [approval for approval in approvals if approval.status == ApprovalStatus.PENDING.value]
    bases: dict[uuid.UUID, dict[str, str | None]] = {}
    for action in sorted({approval.action for approval in pending}):
        alike = [approval for approval in pending if approval.action == action]
        bases |= subject_of(alike[0]).present_bases(alike)
    able = operators
    if able is None:
        voters = [(approval.environment, d.reviewer_id) for approval in pending for d in decisions[approval.pk]]
        able = people_who_may(Permission.OPERATE_ENVIRONMENT, voters)
    depending = _depend_on_the_requester(pending, decisions, histories)
    found: dict[uuid.UUID, CurrentFacts] = {}
    for approval in approvals:
        votes = decisions[approval.pk]
        if approval.pk in bases:
            base = bases[approval.pk]
            moved = base != approval.base
            digest = digest_of(approval, base) if moved else approval.shown_digest
            counted = [
                d.digest == digest and (approval.environment_id, d.reviewer_id) in able and d.pk not in depending
                for d in votes
            ]
        else:
            base, digest, moved = dict(approval.base), approval.shown_digest, False
            counted = [d.digest == digest for d in votes]
        found[approval.pk] = CurrentFacts(
            shown_digest=digest,
            base=base,
            counting=tuple(d for d, counts in zip(votes, counted, strict=True) if counts),
            stale=tuple(d for d, counts in zip(votes, counted, strict=True) if not counts),
            base_moved=moved,
        )
    return found


def _depend_on_the_requester(
    approvals: Sequence[Approval],
    decisions: Mapping[uuid.UUID, Sequence[Decision]],
    histories: RoleHistories | None,
) -> set[uuid.UUID]:
    """Return the approving votes of users whose role now rests on the requester.

    An earlier vote does not become valid again through a role that the requester granted again.
    """
    now = clock.now()
    votes = [
        (approval, scope_of(approval.environment), approval.requested_by, decision)
        for approval in approvals
        for decision in decisions[approval.pk]
        if decision.decision == "approve" and approval.requested_by is not None
    ]
    histories = histories or RoleHistories({scope.organization_id for _, scope, _, _ in votes}, now)
    return {
        decision.pk
        for approval, scope, requester, decision in votes
        if requester is not None
        and histories.at(scope).depend(decision.reviewer_id, Request(requester, approval.created_at), now=now)
    }


def get_approval(scope: Scope, approval_id: uuid.UUID) -> Approval:
    """Return the approval of this environment. Raises NotFound."""
    approval: Approval = require_row(
        Approval.objects.select_related("environment__project__organization"),
        pk=approval_id,
        environment=scope.require_environment(),
    )
    return approval


def effective_status(approval: Approval) -> str:
    """Return the status: a pending approval whose time has passed is `expired`, also before the job has run."""
    if approval.status == ApprovalStatus.PENDING.value and approval.expires_at <= clock.now():
        return ApprovalStatus.EXPIRED.value
    return str(approval.status)


def with_effective_status(approvals: QuerySet[Approval], status: str) -> QuerySet[Approval]:
    """Filter `approvals` by `effective_status`."""
    too_late = Q(status=ApprovalStatus.PENDING.value, expires_at__lte=clock.now())
    if status == ApprovalStatus.EXPIRED.value:
        return approvals.filter(Q(status=status) | too_late)
    return approvals.filter(~too_late, status=status)


_NEVER = dt.datetime.max.replace(tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class NotYet(Denied):
    """A refusal that ends at `until`."""

    until: dt.datetime = _NEVER


class Deciders:
    """Who may decide on an approval. Its data is read once, at the first use.

    For a page, which needs many answers. Code that acts on an answer makes one under its lock.
    """

    def __init__(self, approval: Approval) -> None:
        self.approval = approval
        self._now = clock.now()
        self._scope = scope_of(approval.environment)
        self._histories = RoleHistories([self._scope.organization_id], self._now)

    @cached_property
    def _weakeners(self) -> Collection[uuid.UUID]:
        return weakened_until(self.approval.environment, self._now)

    @cached_property
    def _operators(self) -> dict[uuid.UUID, tuple[User, bool]]:
        """The users who may operate the environment, and whether they weakened its policy recently."""
        people = people_with(Permission.OPERATE_ENVIRONMENT, self._scope)
        weakening = weakenings(self.approval.environment, self._now).filter(user_id=OuterRef("pk"))
        return {person.pk: (person, person.is_weakener) for person in people.annotate(is_weakener=Exists(weakening))}

    def _approving_from(
        self, people: Collection[uuid.UUID], resets: Mapping[uuid.UUID, dt.datetime | None] | None
    ) -> dict[uuid.UUID, dt.datetime]:
        return approving_from(
            people,
            scope=self._scope,
            requester=self.approval.requested_by,
            requested_at=self.approval.created_at,
            now=self._now,
            histories=self._histories,
            resets=resets,
        )

    def current_facts(self) -> CurrentFacts:
        """The current facts of the approval."""
        pending = self.approval.status == ApprovalStatus.PENDING.value
        operators = {(self.approval.environment_id, pk) for pk in self._operators} if pending else set()
        return current_facts_of_all([self.approval], self._histories, operators)[self.approval.pk]

    def recently_granted(self) -> list[RoleGrant]:
        """Return the roles in the environment that a user granted in the last 24 hours, oldest first."""
        return self._histories.recently_granted(self._scope)

    def may_decide(self, principal: Principal) -> Allowed | Denied:
        """Return whether this caller may vote (not whether the approval is open). The reason is the error code."""
        if not principal.is_person or principal.id is None:
            return Denied("person_required")
        decision = can(principal, Permission.OPERATE_ENVIRONMENT, self._scope)
        if not decision:
            return Denied("permission_denied", visible=isinstance(decision, Denied) and decision.visible)
        if self.approval.policy.get("prevent_self_approval", True) and self.approval.requested_by == principal.acts_for:
            return Denied("self_approval", visible=True)
        if principal.acts_for in self._weakeners:
            return Denied("policy_recently_weakened", visible=True)
        return decision

    def may_approve(self, principal: Principal) -> Allowed | Denied:
        """Return whether this caller may approve: `may_decide`, and independent of the requester (`NotYet`,
        `reviewer_recently_added`).

        A user who may decide may always deny.
        """
        verdict = self.may_decide(principal)
        if isinstance(verdict, Denied) or principal.id is None:
            return verdict
        known = self.__dict__.get("_operators", {}).get(principal.id)
        later = self._approving_from([principal.id], {principal.id: known[0].password_reset_at} if known else None)
        if principal.id in later:
            return NotYet("reviewer_recently_added", visible=True, until=later[principal.id])
        return verdict

    def eligible_people(self) -> list[User]:
        """Return the users who could approve now, by name, whether or not they have voted."""
        able = {pk: person for pk, (person, is_weakener) in self._operators.items() if not is_weakener}
        if self.approval.policy.get("prevent_self_approval", True) and self.approval.requested_by is not None:
            able.pop(self.approval.requested_by, None)
        later = self._approving_from(able, {pk: person.password_reset_at for pk, person in able.items()})
        return sorted((person for pk, person in able.items() if pk not in later), key=str)


def facts_and_blocked_reason(approval: Approval) -> tuple[CurrentFacts, str]:
    """Return the current facts of an approval, and `no_eligible_reviewer: …` if fewer users could approve than it needs, else
    an empty text."""
    deciders = Deciders(approval)
    facts = deciders.current_facts()
    if effective_status(approval) != ApprovalStatus.PENDING.value:
        return facts, ""
    voted = {decision.reviewer_id for decision in facts.counting}
    able = sum(1 for person in deciders.eligible_people() if person.pk not in voted)
    missing = approval.required_approvals - facts.approvals
    return facts, f"no_eligible_reviewer: {too_few_reviewers(able, missing)}" if able < missing else ""


def too_few_reviewers(able: int, missing: int) -> str:
    """Return a sentence for an approval that needs `missing` more votes while `able` users could give one."""
    return (
        f"It needs {missing} more approval{'' if missing == 1 else 's'}, and {able or 'no'} {'person' if able == 1 else 'people'} can give "
        f"{'them' if missing > 1 else 'it'} now. An organization admin can grant the operator role."
    )


def approvals_to_decide(principal: Principal) -> QuerySet[Approval]:
    """Return the approvals that need this user's decision: open, in an environment they operate, requested by another
    user, without a vote of theirs that counts.

    An approval returns to this list when its base changes and the vote no longer counts.
    """
    if principal.id is None or not principal.is_person:
        return Approval.objects.none()
    mine = environments_where(principal, Permission.OPERATE_ENVIRONMENT).values("pk")
    open_ones: QuerySet[Approval] = (
        Approval.objects.select_related("environment__project__organization")
        .filter(environment__in=mine, status=ApprovalStatus.PENDING.value, expires_at__gt=clock.now())
        .exclude(requested_by=principal.acts_for, policy__prevent_self_approval=True)
    )
    voted = Exists(Decision.objects.filter(approval=OuterRef("pk"), reviewer_id=principal.id))
    voted_on = list(open_ones.filter(voted))
    facts = current_facts_of_all(voted_on)
    counted = [approval.pk for approval in voted_on if facts[approval.pk].counts(principal.id)]
    return open_ones.exclude(pk__in=counted)
