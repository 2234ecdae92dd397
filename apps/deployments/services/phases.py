"""Phases of a rollout: assignment of targets, start and end of bakes, and their events."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from django.db.models import BooleanField, Case, Count, OuterRef, Subquery, Value, When
from django.db.models.functions import Coalesce

from apps.agents import selectors as agent_reads
from apps.agents import services as agents
from apps.agents.registry import Desired
from apps.approvals.models import Approval, ApprovalStatus
from apps.core.db import in_chunks
from apps.deployments.models import Confirmation, Deployment, PhaseMark, Target, TargetStatus, describe_counts
from apps.deployments.rollout import Step, Tally, next_step
from apps.deployments.services.transitions import record_phase
from apps.runtime.faults import fault_point

T = TargetStatus

UNHEALTHY = "unhealthy"
SILENT = "silent"


@dataclass(frozen=True, slots=True)
class _Note:
    phase: int
    mark: PhaseMark
    detail: str
    at: dt.datetime


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a rollout: the events to record, the step it stopped at, and target counts by status."""

    notes: Sequence[_Note]
    step: Step
    counts: Counter[str]
    why: str = "failures_exceeded"


def tally_of(deployment: Deployment) -> list[Tally]:
    """Count the deployment's targets by phase, status and settlement."""
    settled = Case(When(settled_at__isnull=False, then=Value(True)), default=Value(False), output_field=BooleanField())
    rows = (
        Target.objects.filter(deployment=deployment)
        .annotate(is_settled=settled)
        .values_list("phase", "status", "is_settled")
        .annotate(number=Count("pk"))
    )
    return [Tally(phase, status, bool(is_settled), number) for phase, status, is_settled, number in rows]


def advance_phases(deployment: Deployment, *, now: dt.datetime) -> Progress:
    """Advance a deployment that is (or is about to be) `deploying` as far as possible: begin phases and bakes.

    Runs in the caller's transaction with the environment locked. Writes targets, agents and the deployment's phase. The
    caller then makes the transition that `step` asks for (FAIL, ACTIVATE; none for WAIT) and calls `record`, so that audit
    rows are written last. Idempotent for the same `now`.
    """
    notes: list[_Note] = []
    while True:
        silent_count = _end_of_bake(deployment, now)
        rows = tally_of(deployment)
        step = next_step(
            deployment.phases,
            deployment.phase,
            deployment.bake_ends_at,
            rows,
            max_failures=deployment.max_failures,
            now=now,
            silent_count=silent_count,
        )
        present = deployment.phase
        if present is not None and step is Step.ADVANCE and not _still_approved(deployment):
            return Progress(notes, Step.FAIL, _counts(rows), why="approval_revoked")
        if step is Step.BAKE and present is not None:
            notes.append(_bake(deployment, present, now))
            continue
        if present is not None and step in (Step.ADVANCE, Step.ACTIVATE):
            notes.append(_Note(present, PhaseMark.PASSED, _summary(rows, present), now))
        if step is not Step.ADVANCE:
            return Progress(notes, step, _counts(rows))
        notes.append(_begin(deployment, 0 if present is None else present + 1, now))


def record(deployment: Deployment, progress: Progress) -> None:
    """Record the phases that began, baked or passed. A deployment that is not phased has none."""
    if deployment.phased:
        for note in progress.notes:
            record_phase(deployment, note.phase, note.mark, at=note.at, detail=note.detail)


def _still_approved(deployment: Deployment) -> bool:
    """True if the approval is still granted. A revocation also stops the deployment; this is a second safeguard."""
    return Approval.objects.filter(pk=deployment.approval_id, status=ApprovalStatus.APPROVED).exists()


def _counts(rows: Sequence[Tally]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row.status] += row.number
    return counts


def _summary(rows: Sequence[Tally], phase: int) -> str:
    return describe_counts(_counts([row for row in rows if row.phase == phase])) or "no targets"


def _begin(deployment: Deployment, phase: int, now: dt.datetime) -> _Note:
    """Assign the targets of `phase` whose agents are enrolled, and store what each had last confirmed."""
    waiting = Target.objects.filter(deployment=deployment, phase=phase, status=T.PENDING)
    agent_ids = list(waiting.values_list("agent_id", flat=True))
    confirmed = Confirmation.objects.filter(agent_id=OuterRef("agent_id"))
    waiting.update(
        status=T.ASSIGNED,
        sequence=deployment.sequence,
        phase_started_at=now,
        updated_at=now,
        previous_deployment_id=Subquery(confirmed.values("deployment_id")),
        previous_bundle_sha256=Coalesce(Subquery(confirmed.values("bundle_sha256")), Value("")),
    )
    if deployment.sequence is not None:
        wanted = Desired("activate", deployment.pk, deployment.pk, deployment.bundle_sha256, deployment.sequence)
        agents.note_assigned(agent_ids, wanted, sequence=deployment.sequence)
    agents.announce(agent_ids)
    _set(deployment, phase=phase, phase_started_at=now, bake_started_at=None, bake_ends_at=None, updated_at=now)
    fault_point("deployments.phase.begun")
    return _Note(phase, PhaseMark.STARTED, f"{len(agent_ids)} assigned", now)


def _bake(deployment: Deployment, phase: int, now: dt.datetime) -> _Note:
    bake = deployment.phases[phase].bake
    _set(deployment, bake_started_at=now, bake_ends_at=now + bake, updated_at=now)
    fault_point("deployments.phase.baking")
    return _Note(phase, PhaseMark.BAKING, f"until {now + bake:%Y-%m-%d %H:%M:%S} UTC", now)


def _set(deployment: Deployment, **columns: object) -> None:
    Deployment.objects.filter(pk=deployment.pk).update(**columns)
    for name, value in columns.items():
        setattr(deployment, name, value)


def _end_of_bake(deployment: Deployment, now: dt.datetime) -> int:
    """Fail the targets whose last heartbeat is unhealthy at the end of a bake, and return the number of silent ones.

    A silent activated target holds up the phase; after `timeout_seconds` more it fails too.
    """
    ends = deployment.bake_ends_at
    if ends is None or now < ends:
        return 0
    activated = Target.objects.filter(deployment=deployment, status=T.ACTIVATED)
    agent_ids = list(activated.values_list("agent_id", flat=True))
    unhealthy_agents = agent_reads.unhealthy_agents(agent_ids, deployment.pk)
    silent = [a for a in agent_reads.offline_agents(agent_ids, now) if a not in unhealthy_agents]
    for chunk in in_chunks(unhealthy_agents):
        for target in activated.filter(agent_id__in=chunk):
            fail_active_target(target, UNHEALTHY, unhealthy_agents[target.agent_id], now)
    if now < ends + dt.timedelta(seconds=deployment.timeout_seconds):
        return len(silent)
    for chunk in in_chunks(silent):
        for target in activated.filter(agent_id__in=chunk):
            fail_active_target(target, SILENT, "no heartbeat at the end of the bake", now)
    return 0


def fail_active_target(target: Target, code: str, detail: str, now: dt.datetime) -> None:
    """Fail an activated target that became unhealthy. Its agent's directive changes to a rollback."""
    reason = f"{code}: {detail}" if detail else code
    report = {**target.report, "status": T.FAILED.value, "reason": reason, "failure": reason}
    Target.objects.filter(pk=target.pk, status=T.ACTIVATED).update(
        status=T.FAILED, settled_at=now, updated_at=now, report=report
    )
    agents.announce([target.agent_id])
