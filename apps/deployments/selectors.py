"""Queries for deployments and the desired state of agents."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Subquery, Value

from apps.agents.models import Agent
from apps.agents.registry import Desired, RunningDetail
from apps.core.visibility import ScopedQuerySet
from apps.deployments.desired import Assigned, desired_of
from apps.deployments.models import (
    IN_FLIGHT,
    ConfigBundle,
    Confirmation,
    Deployment,
    DeploymentEvent,
    DeploymentQuerySet,
    DeploymentStatus,
    PhaseEvent,
    PhaseMark,
    Target,
    TargetStatus,
)
from apps.deployments.rollout import Phase, PhaseState, phase_state
from apps.tenancy.models import Environment
from apps.tenancy.scope import Scope

WALK_STEP = 8
MOST_NAMED = 50
K = TypeVar("K")


_ASSIGNED = (
    "deployment_id",
    "sequence",
    "deployment__bundle_sha256",
    "deployment__status",
    "status",
    "deployment__rolling_back_at",
    "rollback_at",
)


_ASSIGNMENTS: QuerySet[Target, tuple[Any, ...]] = (
    Target.objects.filter(sequence__isnull=False).order_by("-sequence").values_list(*_ASSIGNED)
)
"""Built once, because each heartbeat and poll makes this query."""


def assignment_history(agent_id: uuid.UUID) -> Iterator[Assigned]:
    """Every assignment of the agent, highest sequence first, read in small batches."""
    rows = _ASSIGNMENTS.filter(agent_id=agent_id)
    start = 0
    while step := rows[start : start + WALK_STEP]:
        for row in step:
            yield Assigned(*row)
        if len(step) < WALK_STEP:
            return
        start += WALK_STEP


def desired(agent: Agent) -> Desired:
    """The desired state of `agent`. One query in the common case."""
    return desired_of(assignment_history(agent.pk))


def desired_of_each(agent_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Desired]:
    """The desired state of each agent, in two queries.

    An agent whose newest assignment is ruled out is omitted, because more rows are needed for it (`desired`).
    """
    assigned = Target.objects.filter(agent_id=OuterRef("pk"), sequence__isnull=False).order_by("-sequence")
    newest = Agent.objects.filter(pk__in=agent_ids).annotate(newest=Subquery(assigned.values("pk")[:1]))
    targets = dict(newest.values_list("pk", "newest"))
    rows = Target.objects.filter(pk__in=[pk for pk in targets.values() if pk]).values_list("agent_id", *_ASSIGNED)
    found = {agent_id: Desired(directive="none") for agent_id, target in targets.items() if target is None}
    for agent_id, *columns in rows:
        item = Assigned(*columns)
        if not item.ruled_out:
            found[agent_id] = desired_of([item])
    return found


def base_of(
    environment_id: uuid.UUID, agent_ids: Sequence[uuid.UUID], *, exclude: uuid.UUID | None = None
) -> dict[str, str | None]:
    """{agent id: its base deployment}, None without one. An approval is decided against these bases.

    The base is the deployment that is building or deploying on the agent (except `exclude`), else the last confirmed one.
    """
    return bases_of({0: BaseQuery(environment_id, agent_ids, exclude)})[0]


@dataclass(frozen=True, slots=True)
class BaseQuery:
    """Query of `bases_of`: the bases of these agents of one environment, without one deployment."""

    environment_id: uuid.UUID
    agent_ids: Sequence[uuid.UUID]
    exclude: uuid.UUID | None = None


_NAMED_AGENTS = 500
"""Maximum number of agents that a query names. Beyond it, the query reads all agents of the environments."""


def bases_of(questions: Mapping[K, BaseQuery]) -> dict[K, dict[str, str | None]]:
    """The result of `base_of` for many queries at once, in one database query."""
    environments = {question.environment_id for question in questions.values()}
    agents = {agent_id for question in questions.values() for agent_id in question.agent_ids}
    confirmed = Confirmation.objects.filter(environment_id__in=environments)
    targets = Target.objects.filter(
        deployment__environment_id__in=environments,
        deployment__status__in=(DeploymentStatus.BUILDING, DeploymentStatus.DEPLOYING),
    )
    if len(agents) <= _NAMED_AGENTS:
        confirmed, targets = confirmed.filter(agent_id__in=agents), targets.filter(agent_id__in=agents)
    columns = ("agent_id", "deployment_id")
    both = confirmed.values_list(*columns, Value(True)).union(targets.values_list(*columns, Value(False)), all=True)
    # at most one deployment is in progress on an agent, and a deployment is not its own base
    last: dict[uuid.UUID, uuid.UUID | None] = {}
    in_progress: dict[uuid.UUID, list[uuid.UUID]] = {}
    for agent_id, deployment_id, is_confirmed in both:
        if is_confirmed:
            last[agent_id] = deployment_id
        else:
            in_progress.setdefault(agent_id, []).append(deployment_id)
    bases: dict[K, dict[str, str | None]] = {}
    for key, question in questions.items():
        base: dict[str, str | None] = {}
        for agent_id in question.agent_ids:
            now = [pk for pk in in_progress.get(agent_id, ()) if pk != question.exclude]
            stands_on = now[-1] if now else last.get(agent_id)
            base[str(agent_id)] = str(stands_on) if stands_on else None
        bases[key] = base
    return bases


def bundles(scope: Scope) -> ScopedQuerySet[ConfigBundle]:
    """The environment's config bundles."""
    return ConfigBundle.objects.filter(environment=scope.require_environment())


def deployments(scope: Scope) -> DeploymentQuerySet:
    """The environment's deployments."""
    rows: DeploymentQuerySet = Deployment.objects.filter(environment=scope.require_environment())
    return rows


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """One phase of a phased rollout: its parameters, target counts by status, and the times of its events."""

    number: int
    percent: int
    bake_seconds: int
    state: PhaseState
    counts: Mapping[str, int]
    started_at: dt.datetime | None
    bake_started_at: dt.datetime | None
    passed_at: dt.datetime | None

    @property
    def bake_ends_at(self) -> dt.datetime | None:
        """When the bake ends or ended; None before it began."""
        return self.bake_started_at + dt.timedelta(seconds=self.bake_seconds) if self.bake_started_at else None


@dataclass(frozen=True, slots=True)
class Overview:
    """Target counts of a deployment by status, with `total`, and its phases (empty when it is not phased).

    `needs_redeployment`: an agent runs it although its signing key is revoked.
    """

    counts: Mapping[str, int]
    phases: Sequence[PhaseReport] = ()
    needs_redeployment: bool = False
    phase_events: Sequence[PhaseEvent] = ()
    """Events of its phases, oldest first."""


def _with_total(of: Counter[str]) -> dict[str, int]:
    return {"total": sum(of.values()), **{s: of[s] for s in TargetStatus.values}}


def _is_running() -> Exists:
    """Condition for deployments that an enrolled agent last confirmed to run."""
    enrolled = Agent.objects.enrolled().values("pk")
    return Exists(Confirmation.objects.filter(deployment_id=OuterRef("pk"), agent_id__in=enrolled))


def running_deployments(rows: DeploymentQuerySet) -> DeploymentQuerySet:
    """Those of `rows` that an enrolled agent last confirmed to run."""
    return rows.filter(_is_running())


def needing_redeployment(rows: DeploymentQuerySet, wanted: bool) -> DeploymentQuerySet:
    """Filter `rows` by whether (or, not `wanted`, whether not) an agent runs them under a revoked key."""
    marked = Q(_is_running(), key_revoked_at__isnull=False)
    return rows.filter(marked if wanted else ~marked)


def overviews(deployments: Iterable[Deployment]) -> dict[uuid.UUID, Overview]:
    """{deployment id: its overview}, in two queries, and one more if a signing key was revoked."""
    wanted = {deployment.pk: deployment for deployment in deployments}
    revoked = [pk for pk, deployment in wanted.items() if deployment.key_revoked_at is not None]
    stale: set[uuid.UUID] = set()
    if revoked:
        stale = set(running_deployments(Deployment.objects.filter(pk__in=revoked)).values_list("pk", flat=True))
    by_phase: dict[uuid.UUID, dict[int, Counter[str]]] = {pk: {} for pk in wanted}
    counted = Target.objects.filter(deployment_id__in=wanted).values_list("deployment_id", "phase", "status")
    for pk, phase, status, n in counted.annotate(n=Count("pk")):
        by_phase[pk].setdefault(phase, Counter())[status] += n
    phased = [pk for pk, deployment in wanted.items() if deployment.phased]
    events: dict[uuid.UUID, list[PhaseEvent]] = {}
    marks: dict[tuple[uuid.UUID, int, str], dt.datetime] = {}
    if phased:
        for event in PhaseEvent.objects.filter(deployment_id__in=phased).order_by("pk"):
            events.setdefault(event.deployment_id, []).append(event)
            marks[event.deployment_id, event.phase, event.mark] = event.created_at

    def report(deployment: Deployment, number: int, phase: Phase) -> PhaseReport:
        passed_at = marks.get((deployment.pk, number, PhaseMark.PASSED))
        return PhaseReport(
            number=number,
            percent=phase.percent,
            bake_seconds=phase.bake_seconds,
            state=phase_state(
                number,
                status=str(deployment.status),
                present=deployment.phase,
                baking=deployment.bake_started_at is not None,
                passed=passed_at is not None,
            ),
            counts=_with_total(by_phase[deployment.pk].get(number, Counter())),
            started_at=marks.get((deployment.pk, number, PhaseMark.STARTED)),
            bake_started_at=marks.get((deployment.pk, number, PhaseMark.BAKING)),
            passed_at=passed_at,
        )

    return {
        pk: Overview(
            _with_total(sum(by_phase[pk].values(), Counter())),
            [report(deployment, n, phase) for n, phase in enumerate(deployment.phases)] if deployment.phased else [],
            pk in stale,
            events.get(pk, ()),
        )
        for pk, deployment in wanted.items()
    }


def events_of(deployment: Deployment) -> list[DeploymentEvent]:
    """The deployment's events, oldest first."""
    return list(DeploymentEvent.objects.filter(deployment=deployment).order_by("pk"))


def deletion_blockers(scope: Scope) -> list[str]:
    """Descriptions of the deployments in flight below `scope`, which prevent its deletion."""
    rows = Deployment.objects.filter(scope.below("environment__"), status__in=IN_FLIGHT)
    alive = rows.filter(environment__deleted_at__isnull=True).order_by("pk")
    return [f"deployment {pk} ({status})" for pk, status in alive.values_list("pk", "status")[:50]]


def running_note(scope: Scope) -> list[str]:
    """Sentences that list what runs now in the environments below `scope`."""
    rows = (
        Environment.objects.alive().filter(scope.below(), current_deployment_id__isnull=False).select_related("project")
    )
    environments = {row.current_deployment_id: row for row in rows.order_by("pk")[:MOST_NAMED]}
    running = Deployment.objects.filter(pk__in=environments).order_by("pk")
    return [
        f"{row.pipeline_name} v{row.version_number} runs now in {environments[row.pk].project.name} / "
        f"{environments[row.pk].name}."
        for row in running
    ]


def waiting_for_agent() -> Q:
    """Condition for targets from which a deployment in flight expects a report, now or later.

    A deployment that rolls back expects reports only from targets that were assigned.
    """
    return Q(settled_at__isnull=True, deployment__status__in=IN_FLIGHT) & ~Q(
        deployment__status=DeploymentStatus.ROLLING_BACK, sequence__isnull=True
    )


def in_flight_on(agent_id: uuid.UUID) -> list[str]:
    """Descriptions of the deployments in flight that expect a report from this agent."""
    rows = Target.objects.filter(waiting_for_agent(), agent_id=agent_id)
    return [
        f"deployment {pk} ({status})"
        for pk, status in rows.order_by("pk").values_list("deployment_id", "deployment__status")
    ]


def has_in_flight(agent_id: uuid.UUID) -> bool:
    """True if a deployment with this agent as a target is in flight."""
    return Target.objects.filter(agent_id=agent_id, deployment__status__in=IN_FLIGHT).exists()


def running_detail(agent: Agent) -> RunningDetail:
    """The rules by stage of the bundle that `agent` reports to run, and its last reported tuning."""
    if agent.running_deployment_id is None:
        return RunningDetail()
    target = (
        Target.objects.filter(
            agent_id=agent.pk,
            deployment_id=agent.running_deployment_id,
            deployment__environment_id=agent.environment_id,
        )
        .select_related("deployment")
        .first()
    )
    if target is None:
        return RunningDetail()
    bundle = ConfigBundle.objects.filter(environment_id=agent.environment_id, pk=target.deployment.bundle_id).first()
    stages = bundle.config.get("stages", {}) if bundle is not None else {}
    rules = {name: list(stage["rules"]) for name, stage in stages.items() if stage.get("rules")}
    return RunningDetail(rules=rules, tuning=target.report.get("tuning") or {})
