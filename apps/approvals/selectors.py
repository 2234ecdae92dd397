"""Reads: what an approval says now, who may decide it, what waits for whom."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785
from django.db.models import Exists, OuterRef, QuerySet

from apps.access.policy import Allowed, Denied, can
from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.access.selectors import environments_where, people_with
from apps.approvals.models import Approval, ApprovalStatus, Decision
from apps.approvals.policy import weakeners
from apps.approvals.registry import subject_of
from apps.core import clock
from apps.core.errors import NotFound
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import scope_of


def digest_of(
    *,
    approval_id: uuid.UUID,
    spec_hash: str,
    config_hash: str,
    capabilities: Iterable[str],
    strategy: Mapping[str, Any],
    policy: Mapping[str, Any],
    targets: Iterable[str],
    base: Mapping[str, str | None],
) -> str:
    """`sha256:` of the RFC 8785 form of what is being decided; the same for every viewer, without time, votes or liveness."""
    body: dict[str, Any] = {
        "approval_id": str(approval_id),
        "spec_hash": spec_hash,
        "config_hash": config_hash,
        "capabilities": sorted(capabilities),
        "strategy": dict(strategy),
        "policy": dict(policy),
        "targets": sorted(targets),
        "base": dict(base),
    }
    return "sha256:" + hashlib.sha256(rfc8785.dumps(body)).hexdigest()


def digest_with_base(approval: Approval, base: Mapping[str, str | None]) -> str:
    """The digest that this approval has on `base`."""
    return digest_of(
        approval_id=approval.pk,
        spec_hash=approval.spec_hash,
        config_hash=approval.config_hash,
        capabilities=approval.capabilities,
        strategy=approval.strategy,
        policy=approval.policy,
        targets=approval.target_agent_ids,
        base=base,
    )


@dataclass(frozen=True, slots=True)
class Present:
    """An approval as it stands: the digest to decide on, its base, the votes that count, and those that don't any more."""

    shown_digest: str
    base: dict[str, str | None]
    counting: tuple[Decision, ...]
    stale: tuple[Decision, ...]
    base_moved: bool


def present(approval: Approval) -> Present:
    """How the approval stands now. While pending the base is looked up; once decided both are frozen."""
    decisions = list(approval.decisions.order_by("pk"))
    if approval.status == ApprovalStatus.PENDING.value:
        base = subject_of(approval).present_base(approval)
        digest = digest_with_base(approval, base)
        able = set(
            people_with(Permission.OPERATE_ENVIRONMENT, scope_of(approval.environment))
            .filter(pk__in=[d.reviewer_id for d in decisions])
            .values_list("pk", flat=True)
        )
    else:
        base, digest = dict(approval.base), approval.shown_digest
        able = {d.reviewer_id for d in decisions}
    counting = tuple(d for d in decisions if d.digest == digest and d.reviewer_id in able)
    stale = tuple(d for d in decisions if d not in counting)
    return Present(digest, base, counting, stale, digest != approval.shown_digest)


def get_approval(scope: Scope, approval_id: uuid.UUID) -> Approval:
    """The approval of this environment, or NotFound."""
    row = (
        Approval.objects.select_related("environment__project__organization")
        .filter(pk=approval_id, environment=scope.here)
        .first()
    )
    if row is None:
        raise NotFound()
    found: Approval = row
    return found


def effective_status(approval: Approval) -> str:
    """The status as of now: a pending one whose window has passed reads `expired` before the sweep has been there."""
    if approval.status == ApprovalStatus.PENDING.value and approval.expires_at <= clock.now():
        return ApprovalStatus.EXPIRED.value
    return str(approval.status)


def may_decide(principal: Principal, approval: Approval) -> Allowed | Denied:
    """Whether this caller may vote on it at all (not whether it is still open). The reason is the contract's code."""
    if not principal.is_person or principal.id is None:
        return Denied("person_required")
    decision = can(principal, Permission.OPERATE_ENVIRONMENT, scope_of(approval.environment))
    if not decision:
        return Denied("permission_denied", visible=isinstance(decision, Denied) and decision.visible)
    if approval.policy.get("prevent_self_approval", True) and approval.requested_by == principal.id:
        return Denied("self_approval", visible=True)
    if principal.id in weakeners(approval.environment):
        return Denied("policy_recently_weakened", visible=True)
    return decision


def waiting_for(principal: Principal) -> QuerySet[Approval]:
    """What waits for this person: open, in an environment they operate, not asked by them, not voted on as it stands.

    A vote on a former digest does not count, and neither does an approval whose base has moved since hide here: the
    stored digest is that of the request, so a person who voted on it sees it again once the base moves.
    """
    mine = environments_where(principal, Permission.OPERATE_ENVIRONMENT).values("pk")
    voted = Decision.objects.filter(
        approval=OuterRef("pk"), reviewer_id=principal.id or uuid.UUID(int=0), digest=OuterRef("shown_digest")
    )
    rows: QuerySet[Approval] = (
        Approval.objects.select_related("environment__project__organization")
        .filter(environment__in=mine, status=ApprovalStatus.PENDING.value, expires_at__gt=clock.now())
        .exclude(requested_by=principal.id, policy__prevent_self_approval=True)
        .exclude(Exists(voted))
    )
    return rows
