"""What a reviewer is shown of an approval: gathered here, laid out by the template."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import Any

from django.utils.safestring import SafeString

from apps.access.policy import Allowed, Denied, can
from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.agents.models import Agent
from apps.approvals.models import Approval, ApprovalEvent, ApprovalStatus
from apps.approvals.selectors import Present, effective_status, may_decide, present
from apps.console.rollout import Rollout, phase_line, rollout_of
from apps.core import clock
from apps.core.ids import parse_id
from apps.deployments.models import ConfigBundle, Deployment, DeploymentEvent, Target
from apps.deployments.selectors import events_of, overviews, targets_of
from apps.pipelines.admin import graph_of
from apps.pipelines.models import PipelineVersion
from apps.pipelines.selectors import DiffLine, SpecDiff, diff_specs, line_diff
from apps.tenancy.selectors import scope_of

LIVE_UNTIL = ("active", "denied", "failed", "rolled_back")
WHY_NOT = {
    "self_approval": "You asked for this deployment. Somebody else decides it.",
    "permission_denied": "Deciding needs the operator role here; yours lets you look.",
    "policy_recently_weakened": "You weakened this environment's approval policy in the last 24 hours.",
    "person_required": "Deciding needs a person.",
}


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One host of the deployment as the page shows it."""

    name: str
    liveness: str
    status: str
    now_runs: str
    before: str
    phase: int


@dataclass(frozen=True, slots=True)
class Review:
    """Everything on the approval's page."""

    approval: Approval
    status: str
    now: Present
    deployment: Deployment | None
    version: PipelineVersion | None
    active: Deployment | None
    spec: SpecDiff | None
    config_lines: list[DiffLine]
    config_changed: bool
    graph: SafeString
    gained: list[str]
    lost: list[str]
    targets: list[TargetRow]
    liveness: dict[str, int]
    rollout: Rollout | None
    events: list[ApprovalEvent]
    deployment_events: list[DeploymentEvent]
    verdict: Allowed | Denied
    may_revoke: bool
    votes: int
    voted: bool
    mine: bool

    @property
    def open(self) -> bool:
        """Whether it can still be decided."""
        return self.status == ApprovalStatus.PENDING.value

    @property
    def can_vote(self) -> bool:
        """Whether this person may decide it now."""
        return self.open and bool(self.verdict) and not self.voted

    @property
    def why_not(self) -> str:
        """Why this person can't decide, in words."""
        return WHY_NOT.get(self.verdict.reason, self.verdict.reason) if isinstance(self.verdict, Denied) else ""

    @property
    def rule(self) -> str:
        """The policy in words."""
        needed = self.approval.required_approvals
        people = (
            "nobody needs to approve"
            if needed == 0
            else f"{needed} {'person' if needed == 1 else 'people'} must approve"
        )
        own = (
            "never the one who asked"
            if self.approval.policy.get("prevent_self_approval", True)
            else "the one who asked may, too"
        )
        return f"{people[0].upper()}{people[1:]}, {own}. One denial ends it."


def _config_text(config: Any) -> str:
    return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)


def near_changes(lines: list[DiffLine], context: int = 3) -> list[DiffLine]:
    """The lines that differ with `context` lines around them; a line tagged `…` where some are left out."""
    keep = {j for i, line in enumerate(lines) if line.tag != " " for j in range(i - context, i + context + 1)}
    shown: list[DiffLine] = []
    for index, line in enumerate(lines):
        if index in keep:
            shown.append(line)
        elif not shown or shown[-1].tag != "…":
            shown.append(DiffLine("…", None, None, ""))
    return shown


def _stands_on(base: dict[str, str | None]) -> Deployment | None:
    counted = Counter(value for value in base.values() if value)
    if not counted:
        return None
    found: Deployment | None = Deployment.objects.filter(pk=counted.most_common(1)[0][0]).first()
    return found


def review(approval: Approval, principal: Principal) -> Review:
    """What this person sees of this approval now."""
    now = present(approval)
    deployment = Deployment.objects.filter(approval_id=approval.pk).first()
    version = bundle = active_version = active_bundle = None
    active = _stands_on(now.base)
    if deployment is not None:
        version = PipelineVersion.objects.filter(pk=deployment.version_id).first()
        bundle = ConfigBundle.objects.filter(pk=deployment.bundle_id).first()
    if active is not None:
        active_version = PipelineVersion.objects.filter(pk=active.version_id).first()
        active_bundle = ConfigBundle.objects.filter(pk=active.bundle_id).first()
    spec = diff_specs(active_version.spec if active_version else None, version.spec) if version else None
    old = _config_text(active_bundle.config) if active_bundle else ""
    new = _config_text(bundle.config) if bundle else ""
    had = set(active_version.capabilities if active_version else ())
    has = set(approval.capabilities)
    rows, liveness = _targets(deployment, approval)
    return Review(
        approval=approval,
        status=effective_status(approval),
        now=now,
        deployment=deployment,
        version=version,
        active=active,
        spec=spec,
        config_lines=near_changes(line_diff(old, new)),
        config_changed=old != new,
        graph=graph_of(version.spec) if version else SafeString(""),
        gained=sorted(has - had),
        lost=sorted(had - has),
        targets=rows,
        liveness=liveness,
        rollout=rollout_of(deployment) if deployment is not None else None,
        events=list(approval.events.order_by("pk")),
        deployment_events=events_of(deployment) if deployment else [],
        verdict=may_decide(principal, approval),
        may_revoke=approval.status in (ApprovalStatus.PENDING.value, ApprovalStatus.APPROVED.value)
        and (deployment is None or deployment.status not in LIVE_UNTIL)
        and bool(can(principal, Permission.OPERATE_ENVIRONMENT, scope_of(approval.environment))),
        votes=sum(1 for d in now.counting if d.decision == "approve"),
        mine=approval.requested_by == principal.id,
        voted=any(d.reviewer_id == principal.id and d.digest == now.shown_digest for d in now.counting),
    )


def _targets(deployment: Deployment | None, approval: Approval) -> tuple[list[TargetRow], dict[str, int]]:
    ids = [i for text in approval.target_agent_ids if (i := parse_id(text)) is not None]
    agents: dict[uuid.UUID, Agent] = {a.pk: a for a in Agent.objects.filter(pk__in=ids)}
    moment, rows, liveness = clock.now(), [], Counter[str]()
    targets: list[Target] = targets_of(deployment) if deployment else []
    for target in targets:
        agent = agents.get(target.agent_id)
        alive = agent.status_at(moment) if agent else "removed"
        liveness[alive] += 1
        runs = (agent.running_bundle_sha256 or "")[:12] if agent else ""
        before = str(target.previous_deployment_id or "")
        rows.append(
            TargetRow(target.agent_name, alive, str(target.status), runs or "nothing", before, target.phase + 1)
        )
    return rows, dict(liveness)


def live_state(deployment: Deployment | None, approval: Approval | None) -> dict[str, Any]:
    """What the page polls for: statuses, counts and targets, and whether to go on."""
    state: dict[str, Any] = {
        "approval": effective_status(approval) if approval else None,
        "deployment": None,
        "targets": [],
    }
    if deployment is None:
        return {**state, "settled": True}
    state["deployment"] = str(deployment.status)
    state["reason"] = deployment.status_reason
    overview = overviews([deployment])[deployment.pk]
    targets = targets_of(deployment)
    state["counts"] = dict(overview.counts)
    state["phases"] = [phase_line(report) for report in overview.phases]
    agents = {a.pk: a for a in Agent.objects.filter(pk__in=[t.agent_id for t in targets])}
    state["targets"] = [
        {
            "name": t.agent_name,
            "phase": t.phase + 1,
            "status": str(t.status),
            "runs": (agents[t.agent_id].running_bundle_sha256 or "")[:12] if t.agent_id in agents else "",
        }
        for t in targets
    ]
    state["settled"] = deployment.status in LIVE_UNTIL
    return state
