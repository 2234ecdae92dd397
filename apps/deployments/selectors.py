"""Reads of deployments, and what an agent shall run."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from django.db.models import Count, Exists, OuterRef, Q, QuerySet

from apps.access.principals import Principal
from apps.agents.models import Agent
from apps.agents.registry import Desired
from apps.core.errors import NotFound
from apps.core.prepared import Prepared
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
    ScopedQuerySet,
    Target,
    TargetStatus,
)
from apps.deployments.rollout import Phase, PhaseState, phase_state
from apps.tenancy.scope import Scope

WALK_STEP = 8


def walk(agent_id: uuid.UUID) -> Iterator[Assigned]:
    """All that the agent was ever assigned, highest sequence first, read a few rows at a time."""
    rows = (
        Target.objects.filter(agent_id=agent_id, sequence__isnull=False)
        .order_by("-sequence")
        .values_list(
            "deployment_id",
            "sequence",
            "deployment__bundle_sha256",
            "deployment__status",
            "status",
            "deployment__rolling_back_at",
            "rollback_at",
        )
    )
    start = 0
    while True:
        step = list(rows[start : start + WALK_STEP])
        for deployment_id, sequence, digest, deployment_status, status, rolling_back_at, rollback_at in step:
            if sequence is not None:
                yield Assigned(deployment_id, sequence, digest, deployment_status, status, rolling_back_at, rollback_at)
        if len(step) < WALK_STEP:
            return
        start += WALK_STEP


def desired(agent: Agent) -> Desired:
    """What `agent` shall run now. One query in the common case."""
    return desired_of(walk(agent.pk))


def base_of(
    environment_id: uuid.UUID, agent_ids: Sequence[uuid.UUID], *, aside: uuid.UUID | None = None
) -> dict[str, str | None]:
    """{agent id: the deployment it stands on}, None for nothing: what an approval is decided against.

    That is the deployment that is building or deploying on it (`aside` is left out), else the one it last confirmed.
    """
    base: dict[str, str | None] = {str(agent_id): None for agent_id in agent_ids}
    confirmed = Confirmation.objects.filter(environment_id=environment_id, agent_id__in=agent_ids)
    for agent_id, deployment_id in confirmed.values_list("agent_id", "deployment_id"):
        base[str(agent_id)] = str(deployment_id) if deployment_id else None
    under_way = Target.objects.filter(
        deployment__environment_id=environment_id,
        deployment__status__in=(DeploymentStatus.BUILDING, DeploymentStatus.DEPLOYING),
        agent_id__in=agent_ids,
    )
    if aside is not None:
        under_way = under_way.exclude(deployment_id=aside)
    for agent_id, deployment_id in under_way.values_list("agent_id", "deployment_id"):
        base[str(agent_id)] = str(deployment_id)
    return base


def bundles(scope: Scope) -> ScopedQuerySet[ConfigBundle]:
    """The environment's config bundles."""
    return ConfigBundle.objects.filter(environment=scope.here)


_bundle_in: Prepared[ConfigBundle] = Prepared(
    lambda environment_id, pk: ConfigBundle.objects.filter(environment_id=environment_id, pk=pk)
)


def get_bundle(scope: Scope, bundle_id: uuid.UUID) -> ConfigBundle:
    """One config bundle of the environment. NotFound otherwise."""
    bundle = _bundle_in.first(scope.here.pk, bundle_id)
    if bundle is None:
        raise NotFound()
    return bundle


def deployments(scope: Scope) -> DeploymentQuerySet:
    """The environment's deployments."""
    rows: DeploymentQuerySet = Deployment.objects.filter(environment=scope.here)
    return rows


_deployment_in: Prepared[Deployment] = Prepared(
    lambda environment_id, pk: Deployment.objects.filter(environment_id=environment_id, pk=pk)
)


def get_deployment(scope: Scope, deployment_id: uuid.UUID) -> Deployment:
    """One deployment of the environment. NotFound otherwise."""
    deployment = _deployment_in.first(scope.here.pk, deployment_id)
    if deployment is None:
        raise NotFound()
    return deployment


def visible_deployments(principal: Principal) -> DeploymentQuerySet:
    """Every deployment in an environment that `principal` may see."""
    return Deployment.objects.all().visible_to(principal)


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """One phase of a phased rollout: what it asks for, its targets by status, and when what became of it."""

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
        """When its bake ends or ended; None before it began."""
        return self.bake_started_at + dt.timedelta(seconds=self.bake_seconds) if self.bake_started_at else None


@dataclass(frozen=True, slots=True)
class Overview:
    """The targets of a deployment by status, `total` with them, and its phases (none when it is not phased).

    `needs_redeployment`: some agent runs it although the key that it was signed under is revoked.
    """

    counts: Mapping[str, int]
    phases: Sequence[PhaseReport] = ()
    needs_redeployment: bool = False


def _with_total(of: Counter[str]) -> dict[str, int]:
    return {"total": sum(of.values()), **{s: of[s] for s in TargetStatus.values}}


def still_run(deployment_ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Those of `deployment_ids` that some agent, still enrolled, last confirmed to run."""
    ids = list(deployment_ids)
    if not ids:
        return set()
    rows = Confirmation.objects.filter(deployment_id__in=ids, agent_id__in=Agent.objects.enrolled().values("pk"))
    return {pk for pk in rows.values_list("deployment_id", flat=True).distinct() if pk is not None}


def needing_redeployment(rows: DeploymentQuerySet, wanted: bool) -> DeploymentQuerySet:
    """Those of `rows` that do (or, not `wanted`, do not) run somewhere under a key that was revoked."""
    run = Confirmation.objects.filter(deployment_id=OuterRef("pk"), agent_id__in=Agent.objects.enrolled().values("pk"))
    marked = Q(Exists(run), key_revoked_at__isnull=False)
    return rows.filter(marked if wanted else ~marked)


def _counted(targets: QuerySet[Target]) -> QuerySet[Target, tuple[uuid.UUID, int, str, int]]:
    return targets.values_list("deployment_id", "phase", "status").annotate(n=Count("pk"))


_counts_of = Prepared(lambda pk: _counted(Target.objects.filter(deployment_id=pk)))


def overviews(deployments: Iterable[Deployment]) -> dict[uuid.UUID, Overview]:
    """{deployment: its overview}, in two queries for all of them, and one more if a key of theirs was revoked."""
    wanted = {deployment.pk: deployment for deployment in deployments}
    stale = still_run(pk for pk, deployment in wanted.items() if deployment.key_revoked_at is not None)
    by_phase: dict[uuid.UUID, dict[int, Counter[str]]] = {pk: {} for pk in wanted}
    # one alone is what a detail asks for, all the time
    alone = list(wanted) if len(wanted) == 1 else None
    rows = _counts_of.all(*alone) if alone else _counted(Target.objects.filter(deployment_id__in=list(wanted)))
    for pk, phase, status, n in rows:
        by_phase[pk].setdefault(phase, Counter())[status] += n
    phased = [pk for pk, deployment in wanted.items() if deployment.phased]
    marks: dict[tuple[uuid.UUID, int, str], dt.datetime] = {}
    if phased:
        for event in PhaseEvent.objects.filter(deployment_id__in=phased):
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
        )
        for pk, deployment in wanted.items()
    }


def target_counts(deployment: Deployment) -> Mapping[str, int]:
    """{total, and a count per target status}."""
    return overviews([deployment])[deployment.pk].counts


def events_of(deployment: Deployment) -> list[DeploymentEvent]:
    """What happened to it, oldest first."""
    return list(DeploymentEvent.objects.filter(deployment=deployment).order_by("pk"))


def phase_events_of(deployment: Deployment) -> list[PhaseEvent]:
    """What became of its phases, oldest first."""
    return list(PhaseEvent.objects.filter(deployment=deployment).order_by("pk"))


def targets_of(deployment: Deployment) -> list[Target]:
    """Its targets, by phase and agent name."""
    return list(Target.objects.filter(deployment=deployment).order_by("phase", "agent_name", "pk"))


def deletion_blockers(scope: Scope) -> list[str]:
    """The deployments in flight below `scope`, in words: what stands in the way of deleting it."""
    rows = Deployment.objects.filter(status__in=IN_FLIGHT)
    if scope.environment is not None:
        rows = rows.filter(environment=scope.environment)
    elif scope.project is not None:
        rows = rows.filter(environment__project=scope.project)
    else:
        rows = rows.filter(environment__project__organization=scope.organization)
    alive = rows.filter(environment__deleted_at__isnull=True).order_by("pk")
    return [f"deployment {pk} ({status})" for pk, status in alive.values_list("pk", "status")[:50]]


def waiting_for_agent() -> Q:
    """The targets that a deployment in flight waits for, or will. One that goes back waits only for those it had told."""
    return Q(settled_at__isnull=True, deployment__status__in=IN_FLIGHT) & ~Q(
        deployment__status=DeploymentStatus.ROLLING_BACK, sequence__isnull=True
    )


def in_flight_on(agent_id: uuid.UUID) -> list[str]:
    """The deployments in flight that still wait for this agent, in words."""
    rows = Target.objects.filter(waiting_for_agent(), agent_id=agent_id)
    return [
        f"deployment {pk} ({status})"
        for pk, status in rows.order_by("pk").values_list("deployment_id", "deployment__status")
    ]


def has_in_flight(agent_id: uuid.UUID) -> bool:
    """Is a deployment with this agent as a target in flight?"""
    return Target.objects.filter(agent_id=agent_id, deployment__status__in=IN_FLIGHT).exists()
