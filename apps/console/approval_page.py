"""The approval page: the request, the changes per agent, the decision, and the history."""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.safestring import SafeString, mark_safe

from apps.access.policy import Allowed, Denied, can
from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.agents.selectors import for_warnings, warnings_about
from apps.approvals.models import Approval, ApprovalStatus
from apps.approvals.selectors import (
    CurrentFacts,
    Deciders,
    NotYet,
    effective_status,
    too_few_reviewers,
)
from apps.console.changes import Changes, changes_of, names_of
from apps.console.deployment_page import AGENTS_CARD, HISTORY_CARD, MOVING, SETTLED, agent_table, name_of
from apps.console.live import Card, LivePage, render_cards
from apps.console.rollout import TimelineEntry, count_agents, history_of, rollout_of
from apps.core import clock
from apps.deployments.blocked import Blocker, blockers_of, build_trouble
from apps.deployments.compatibility import agents_too_old, needs_of_pipeline
from apps.deployments.models import Deployment, DeploymentStatus, Target
from apps.deployments.selectors import Overview, overviews
from apps.pipelines.admin import graph_of_plan
from apps.runtime.ops import Need
from apps.tenancy.selectors import scope_of

FOLDER = "admin/approvals/approval"
CARDS = {
    **{name: f"{FOLDER}/{name}.html" for name in ("status", "decision", "bar", "rollout")},
    "history": HISTORY_CARD,
    "fingerprints": f"{FOLDER}/fingerprints.html",
}
SOON = dt.timedelta(minutes=15)
WHY_NOT = {
    "self_approval": "You requested this, so another user must decide it.",
    "permission_denied": "A decision requires the operator role in this project; your role is read-only.",
    "policy_recently_weakened": "You weakened this environment's approval policy in the last 24 hours.",
    "reviewer_recently_added": "Your role or the requester's was granted less than 24 hours ago, by one of you to the other or by the same "
    "user to both, or your password was reset: another user must approve. You can deny.",
    "person_required": "Only a person can decide.",
}
TRIGGERS = {
    "requested": "requested it",
    "quorum": "gave the last required approval",
    "quorum_restored": "enough approvals count again",
    "policy": "the policy requires no approval",
    "denied": "denied it",
    "expired": "not decided in time",
    "withdrawn": "withdrew the request",
    "revoked": "stopped it",
    "cancelled": "cancelled the deployment",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """Actions that a user can take on the approval now."""

    decide: bool = False
    only_deny: bool = False
    withdraw: bool = False
    stop: bool = False
    why_not: str = ""


def offer(deciders: Deciders, deployment: Deployment | None, facts: CurrentFacts, who: Principal) -> Offer:
    """The actions that `who` can take, and why others are unavailable."""
    approval = deciders.approval
    status = effective_status(approval)
    may_operate = bool(can(who, Permission.OPERATE_ENVIRONMENT, scope_of(approval.environment)))
    if status == ApprovalStatus.PENDING.value:
        verdict: Allowed | Denied = deciders.may_approve(who)
        withdraw = may_operate and approval.requested_by == who.acts_for
        mine = next((d for d in facts.counting if d.reviewer_id == who.id), None)
        if mine is not None:
            return Offer(withdraw=withdraw, why_not=f"You approved it at {mine.decided_at:%H:%M} UTC.")
        if isinstance(verdict, NotYet):
            until = f"You can approve it after {verdict.until:%Y-%m-%d %H:%M} UTC."
            return Offer(decide=True, only_deny=True, withdraw=withdraw, why_not=f"{WHY_NOT[verdict.reason]} {until}")
        if not verdict:
            reason = verdict.reason if isinstance(verdict, Denied) else ""
            return Offer(withdraw=withdraw, why_not=WHY_NOT.get(reason, reason))
        return Offer(decide=True, withdraw=withdraw)
    before_completion = deployment is None or deployment.status in (
        DeploymentStatus.APPROVED.value,
        DeploymentStatus.BUILDING.value,
        DeploymentStatus.DEPLOYING.value,
    )
    if status == ApprovalStatus.APPROVED.value and before_completion and may_operate:
        return Offer(stop=True)
    return Offer()


def rule_of(approval: Approval) -> str:
    """Describe the approval's policy."""
    needed = approval.required_approvals
    if needed == 0:
        return "The policy of this environment requires no approval."
    people = f"{needed} {'person' if needed == 1 else 'people'} must approve"
    own = (
        "not the requester"
        if approval.policy.get("prevent_self_approval", True)
        else "the requester may be one of them"
    )
    return f"{people}, {own}. One denial ends it."


def waiting_for_whom(approval: Approval, facts: CurrentFacts, eligible: Sequence[str]) -> str:
    """Describe who can still approve; when too few users can, the API's error with its code."""
    missing = approval.required_approvals - facts.approvals
    if missing <= 0:
        return "Enough people have approved. Its status changes within a minute."
    if len(eligible) < missing:
        return too_few_reviewers(len(eligible), missing)
    shown = ", ".join(eligible[:5]) + (f" and {len(eligible) - 5} more" if len(eligible) > 5 else "")
    return f"{'One more person' if missing == 1 else f'{missing} more people'} must approve. Eligible: {shown}."


def _timeline(
    approval: Approval, facts: CurrentFacts, deployment: Deployment | None, overview: Overview | None
) -> list[TimelineEntry]:
    entries = [
        TimelineEntry(
            event.to_status,
            f"{event.actor_name or event.actor}: {TRIGGERS.get(event.trigger, event.trigger)}",
            event.reason,
            event.at,
        )
        for event in approval.events.order_by("pk")
    ]
    entries += [
        TimelineEntry(vote.decision, f"{vote.reviewer_name} voted", vote.comment, vote.decided_at)
        for vote in (*facts.counting, *facts.stale)
    ]
    if deployment is not None and overview is not None:
        entries += [
            TimelineEntry(item.badge, f"Deployment · {item.text}", item.reason, item.at)
            for item in history_of(deployment, overview)
            if item.badge != DeploymentStatus.PENDING_APPROVAL.value  # the request is already in the timeline
        ]
    return sorted(entries, key=lambda entry: entry.at)


def title_of(approval: Approval, deployment: Deployment | None) -> str:
    """The title of the approval's subject."""
    return name_of(deployment) if deployment is not None else "Replay"


def deployment_of(approval: Approval) -> Deployment | None:
    """The approval's deployment, cached on the approval object; None for a replay."""
    if approval.deployment_id is None:
        return None
    if "_deployment" not in approval.__dict__:
        rows = Deployment.objects.select_related("environment__project__organization")
        approval.__dict__["_deployment"] = rows.filter(pk=approval.deployment_id).first()
    found: Deployment | None = approval.__dict__["_deployment"]
    return found


def _changes_card(
    request: HttpRequest, approval: Approval, deployment: Deployment | None, facts: CurrentFacts, known: str
) -> tuple[Card, Changes | None]:
    """Render the comparison card, and return the comparison if it was made.

    It is expensive and depends only on the digest and the status, so it is not made again for a browser that has it.
    """
    version = hashlib.sha256(f"{facts.shown_digest} {approval.status}".encode()).hexdigest()[:12]
    if f"changes:{version}" in known.split(","):
        return Card(SafeString(""), version), None
    changes: Changes | None = None
    graph = SafeString("")
    if deployment is not None:
        names = names_of(Target.objects.filter(deployment=deployment).values_list("agent_id", "agent_name"))
        changes = changes_of(approval, facts.base, deployment, names)
        if changes.compilation is not None and changes.compilation.plan is not None:
            graph = graph_of_plan(changes.compilation.plan)
    context = {"approval": approval, "deployment": deployment, "changes": changes, "graph": graph, "facts": facts}
    html = render_to_string(f"{FOLDER}/changes.html", context, request=request).strip()
    return Card(mark_safe(html), version), changes  # noqa: S308 - a rendered template


def _needs_of(changes: Changes | None) -> list[Need] | None:
    """What the pipeline uses, where its comparison was made and so is compiled; else None."""
    if changes is None or changes.compilation is None or changes.config is None:
        return None
    return needs_of_pipeline(changes.compilation, changes.config)


def approval_page(
    request: HttpRequest, approval: Approval, who: Principal, *, comment: str = "", polled: bool = False
) -> LivePage:
    """Render the page of `approval` for `who` now; `comment` is the text of a refused decision.

    Only a poll names a comparison that the browser already has; a newly opened page always contains it.
    """
    deciders = Deciders(approval)
    facts = deciders.current_facts()
    deployment = deployment_of(approval)
    status = effective_status(approval)
    blockers: Sequence[Blocker] = blockers_of(deployment) if deployment is not None else ()
    left = approval.expires_at - clock.now()
    eligible: list[str] = []
    if status == ApprovalStatus.PENDING.value:
        voted = {decision.reviewer_id for decision in facts.counting}
        eligible = [str(person) for person in deciders.eligible_people() if person.pk not in voted]
    overview = overviews([deployment])[deployment.pk] if deployment is not None else None
    context: dict[str, Any] = {
        "approval": approval,
        "deployment": deployment,
        "status": status,
        "facts": facts,
        "open": status == ApprovalStatus.PENDING.value,
        "offer": offer(deciders, deployment, facts, who),
        "rule": rule_of(approval),
        "waits_for": waiting_for_whom(approval, facts, eligible) if status == ApprovalStatus.PENDING.value else "",
        "too_few": status == ApprovalStatus.PENDING.value
        and len(eligible) < approval.required_approvals - facts.approvals,
        "joined": deciders.recently_granted() if status == ApprovalStatus.PENDING.value else [],
        "blockers": blockers,
        "trouble": build_trouble(deployment) if deployment is not None and not blockers else "",
        "who_agents": count_agents(len(approval.target_agent_ids)),
        "expires_soon": left < SOON,
        "comment": comment,
        "history": _timeline(approval, facts, deployment, overview),
    }
    known = request.GET.get("known", "") if polled else ""
    changes_card, changes = _changes_card(request, approval, deployment, facts, known)
    cards = dict(CARDS)
    if deployment is None or overview is None:
        del cards["rollout"]
    else:
        context["rollout"] = rollout_of(deployment, overview)
        if context["open"]:
            chosen = list(for_warnings(map(uuid.UUID, approval.target_agent_ids)))
            context["warnings"] = [
                *agents_too_old(deployment, chosen, _needs_of(changes)),
                *warnings_about(chosen, clock.now()),
            ]
        context["table"] = agent_table(deployment, dict(overview.counts), request.GET)
        cards["agents"] = AGENTS_CARD
    rendered = render_cards(request, cards, context)
    rendered["changes"] = changes_card
    name = title_of(approval, deployment)
    where = f"{approval.environment.project.name} / {approval.environment.name}"
    settled = status != ApprovalStatus.PENDING.value and (deployment is None or deployment.status in SETTLED)
    announcement = (
        f"Approval of {name} to {where}: {status}, {facts.approvals} of {approval.required_approvals} approved."
    )
    if deployment is not None and status == ApprovalStatus.APPROVED.value:
        announcement += f" Deployment {str(deployment.status).replace('_', ' ')}."
    return LivePage(
        cards=rendered,
        title=f"{status} · {name} to {where} · Approval · ByteOr Cloud",
        announcement=announcement,
        settled=settled,
        pause=1.0 if deployment is not None and deployment.status in (*MOVING, "approved") else 3.0,
    )
