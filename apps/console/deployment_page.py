"""The deployment page: state, actions and history."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.db.models import QuerySet
from django.db.models.fields.json import KT
from django.http import HttpRequest, QueryDict
from django.urls import reverse

from apps.access.policy import can
from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.agents.models import Agent
from apps.approvals.models import Approval, ApprovalStatus
from apps.approvals.selectors import current_facts, effective_status
from apps.console.live import LivePage, render_cards
from apps.console.rollout import count_agents, history_of, rollout_of
from apps.core import clock
from apps.core.fsm import allowed_from
from apps.deployments.blocked import Blocker, blockers_of, build_trouble
from apps.deployments.models import Deployment, DeploymentStatus, Target, TargetStatus
from apps.deployments.selectors import overviews
from apps.tenancy.selectors import scope_of

S = DeploymentStatus

AGENTS_PER_PAGE = 50
SETTLED = (S.ACTIVE.value, S.DENIED.value, S.FAILED.value, S.ROLLED_BACK.value)
"""Statuses that do not change automatically."""
MOVING = (S.BUILDING.value, S.DEPLOYING.value, S.ROLLING_BACK.value)
AGENTS_CARD = "console/agents.html"
HISTORY_CARD = "console/history.html"
CARDS = {
    **{
        name: f"admin/deployments/deployment/{name}.html"
        for name in ("status", "phases", "actions", "votes", "evidence")
    },
    "agents": AGENTS_CARD,
    "history": HISTORY_CARD,
}


@dataclass(frozen=True, slots=True)
class AgentRow:
    """One row of the table of agents."""

    name: str
    url: str
    phase: int
    liveness: str
    status: str
    runs: str
    why: str


@dataclass(frozen=True, slots=True)
class AgentTable:
    """One page of the table of agents. `filters` are (label, count, query, selected)."""

    rows: Sequence[AgentRow]
    filters: Sequence[tuple[str, int, str, bool]]
    number: int
    pages: int
    total: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Offer:
    """Actions that a user can take on the deployment now; `why_not` if there are none."""

    may_operate: bool
    withdraw: bool = False
    cancel: bool = False
    roll_back: bool = False
    why_not: str = ""


def name_of(deployment: Deployment) -> str:
    """The display name of a deployment within its environment: `pay v2`."""
    return f"{deployment.pipeline_name} v{deployment.version_number}"


def _whole_number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else 1


def agent_table(deployment: Deployment, counts: dict[str, int], query: QueryDict) -> AgentTable:
    """The page of agents that `?page=&target=` selects. The number of rows and queries is bounded."""
    chosen = query.get("target", "")
    if chosen not in TargetStatus.values:
        chosen = ""
    total = counts[chosen] if chosen else counts["total"]
    pages = max(1, -(-total // AGENTS_PER_PAGE))
    number = min(max(1, _whole_number(query.get("page", "1"))), pages)
    rows: QuerySet[Target] = Target.objects.filter(deployment=deployment)
    if chosen:
        rows = rows.filter(status=chosen)
    found: list[Any] = list(
        rows.order_by("phase", "agent_name", "pk")
        .annotate(failure=KT("report__failure"), reason=KT("report__reason"))
        .values("agent_id", "agent_name", "phase", "status", "failure", "reason")[
            (number - 1) * AGENTS_PER_PAGE : number * AGENTS_PER_PAGE
        ]
    )

    def link(page: int, status: str = chosen) -> str:
        asked = {"target": status} if status else {}
        return "?" + urlencode({**asked, **({"page": page} if page > 1 else {})})

    statuses = [s for s in TargetStatus.values if counts[s]]
    return AgentTable(
        rows=_agent_rows(deployment, found),
        filters=[
            ("all", counts["total"], link(1, ""), not chosen),
            *((s, counts[s], link(1, s), s == chosen) for s in statuses),
        ],
        number=number,
        pages=pages,
        total=total,
        before=link(number - 1) if number > 1 else "",
        after=link(number + 1) if number < pages else "",
    )


def _agent_rows(deployment: Deployment, found: Sequence[Mapping[str, Any]]) -> list[AgentRow]:
    agents = {a.pk: a for a in Agent.objects.filter(pk__in=[row["agent_id"] for row in found])}
    running_ids = {a.running_deployment_id for a in agents.values() if a.running_deployment_id is not None}
    others = running_ids - {deployment.pk}
    names: dict[uuid.UUID, str] = {deployment.pk: "this one"}
    if others:
        rows = Deployment.objects.filter(pk__in=others, environment=deployment.environment_id)
        names |= {row.pk: name_of(row) for row in rows.only("pipeline_name", "version_number")}
    moment = clock.now()
    made = []
    for row in found:
        agent = agents.get(row["agent_id"])
        running = agent.running_deployment_id if agent else None
        made.append(
            AgentRow(
                name=row["agent_name"],
                url=reverse("admin:agents_agent_change", args=[agent.pk]) if agent else "",
                phase=row["phase"] + 1,
                liveness=str(agent.status_at(moment)) if agent else "removed",
                status=row["status"],
                runs=names.get(running, "another") if running else "nothing",
                why=row["failure"] or row["reason"] or "",
            )
        )
    return made


def offer(deployment: Deployment, approval: Approval | None, who: Principal) -> Offer:
    """The actions that `who` can take now."""
    may = bool(can(who, Permission.OPERATE_ENVIRONMENT, scope_of(deployment.environment)))
    status = str(deployment.status)
    if not may:
        return Offer(False, why_not="Actions require the operator role in this project; your role is read-only.")
    if status == S.PENDING_APPROVAL.value:
        if approval is not None and effective_status(approval) == ApprovalStatus.EXPIRED.value:
            return Offer(True, why_not="The approval expired, so this deployment can't start. Request a new one.")
        if deployment.requested_by != who.acts_for:
            asker = deployment.requested_by_name or "the requester"
            return Offer(True, why_not=f"Only {asker} can withdraw it while it is pending. To stop it, deny it.")
        return Offer(True, withdraw=True)
    allowed = allowed_from(deployment)
    cancel = status in (S.APPROVED.value, S.BUILDING.value, S.DEPLOYING.value)
    # a failed build delivered nothing; a superseded deployment can't roll back agents of its successor
    back = S.ROLLING_BACK.value in allowed and deployment.deploying_at is not None and not deployment.superseded_by
    if cancel or back:
        return Offer(True, cancel=cancel, roll_back=back)
    if deployment.superseded_by:
        return Offer(True, why_not="A later deployment superseded this one. Use that deployment's page instead.")
    if status == S.ROLLING_BACK.value:
        return Offer(True, why_not="It is rolling back. No action is available until the rollback ends.")
    return Offer(True, why_not="This deployment has ended. Request a new deployment to continue.")


def _sentence(deployment: Deployment, approval: Approval | None, blockers: Sequence[Blocker]) -> str:
    status = str(deployment.status)
    if status == S.PENDING_APPROVAL.value:
        if approval is not None and effective_status(approval) == ApprovalStatus.EXPIRED.value:
            return "The approval expired before it was decided."
        return "It needs approval."
    if status == S.APPROVED.value:
        return "" if blockers else "Approved. Its bundle will be built and signed next."
    return {
        S.BUILDING.value: "Its bundle is being built and signed.",
        S.DEPLOYING.value: "Its agents are downloading, verifying and starting it.",
        S.ROLLING_BACK.value: "Its agents are rolling back to what they ran before.",
    }.get(status, "")


def _seconds_to_wait(deployment: Deployment, blocked: bool) -> float:
    if deployment.status in MOVING:
        return 1.0
    return 3.0 if blocked or deployment.status == S.PENDING_APPROVAL.value else 1.0


def live_page(request: HttpRequest, deployment: Deployment, who: Principal, *, reason: str = "") -> LivePage:
    """Render the deployment's page for `who` now; `reason` is the text of a refused action."""
    overview = overviews([deployment])[deployment.pk]
    counts = dict(overview.counts)
    approval = Approval.objects.filter(pk=deployment.approval_id).first()
    blockers = blockers_of(deployment)
    facts = current_facts(approval) if approval is not None else None
    environment = deployment.environment
    replaced = (
        Deployment.objects.filter(pk=deployment.superseded_by).only("pipeline_name", "version_number").first()
        if deployment.superseded_by
        else None
    )
    rollout = rollout_of(deployment, overview)
    context: dict[str, Any] = {
        "deployment": deployment,
        "approval": approval,
        "approval_status": effective_status(approval) if approval else "",
        "facts": facts,
        "blockers": blockers,
        "trouble": "" if blockers else build_trouble(deployment),
        "sentence": _sentence(deployment, approval, blockers),
        "replaced_by": replaced,
        "runs_now": environment.current_deployment_id == deployment.pk,
        "needs_redeployment": overview.needs_redeployment,
        "rollout": rollout,
        "table": agent_table(deployment, counts, request.GET),
        "history": history_of(deployment, overview),
        "offer": offer(deployment, approval, who),
        "reason": reason,
    }
    status = str(deployment.status).replace("_", " ")
    name, where = name_of(deployment), f"{environment.project.name} / {environment.name}"
    done = ", ".join(f"{counts[s]} {s.replace('_', ' ')}" for s in TargetStatus.values if counts[s])
    phase = next((f", phase {line.number} {line.state}" for line in rollout.phases if line.current), "")
    announcement = f"{name} to {where}: {status}{phase}."
    if deployment.status in SETTLED:
        announcement += f" {count_agents(counts['total'])}: {done}."
    elif blockers:
        announcement += f" It is blocked by {', '.join(name_of(b.deployment) for b in blockers)}."
    return LivePage(
        cards=render_cards(request, CARDS, context),
        title=f"{status} · {name} to {where} · Deployment · ByteOr Cloud",
        announcement=announcement,
        settled=deployment.status in SETTLED,
        pause=_seconds_to_wait(deployment, bool(blockers)),
    )
