"""Queries on agents."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from django.db import models

from apps.agents.models import Agent, AgentKey, AgentQuerySet, EnrollmentToken, Liveness
from apps.core import clock
from apps.core.db import in_chunks
from apps.tenancy.scope import Scope


def all_in(scope: Scope) -> AgentQuerySet:
    """Every agent of the scope's environment, including revoked ones."""
    return Agent.objects.filter(environment=scope.require_environment())


def in_environment(scope: Scope) -> AgentQuerySet:
    """The agents of the scope's environment that can be targets."""
    return all_in(scope).enrolled()


def by_labels(scope: Scope, labels: Mapping[str, str]) -> list[Agent]:
    """The agents of `in_environment` that have all of `labels`, oldest first."""
    wanted = labels.items()
    return [agent for agent in in_environment(scope).order_by("pk") if wanted <= agent.labels.items()]


def working_keys() -> models.QuerySet[AgentKey]:
    """Keys that are not revoked, of agents and environments that are not deleted. Their expiry is not checked."""
    return AgentKey.objects.filter(
        revoked_at__isnull=True, agent__revoked_at__isnull=True, agent__environment__deleted_at__isnull=True
    )


def unhealthy_agents(agent_ids: Iterable[uuid.UUID], deployment_id: uuid.UUID) -> dict[uuid.UUID, str]:
    """Return those of `agent_ids` whose last heartbeat reported a problem, with the reason, unless it was about a
    deployment other than `deployment_id`.
    """
    rows = Agent.objects.filter(healthy=False).filter(
        models.Q(running_deployment_id=deployment_id) | models.Q(running_deployment_id__isnull=True)
    )
    found: dict[uuid.UUID, str] = {}
    for chunk in in_chunks(agent_ids):
        found |= rows.filter(pk__in=chunk).values_list("pk", "health_detail")
    return found


def offline_agents(agent_ids: Iterable[uuid.UUID], now: dt.datetime) -> list[uuid.UUID]:
    """Return those of `agent_ids` that sent heartbeats before and are offline at `now`."""
    rows = Agent.objects.with_liveness(Liveness.OFFLINE, now).filter(last_seen_at__isnull=False)
    return [pk for chunk in in_chunks(agent_ids) for pk in rows.filter(pk__in=chunk).values_list("pk", flat=True)]


@dataclass(frozen=True, slots=True)
class AgentWarning:
    """A warning about an agent, for a person who deploys to it.

    `code` is `two_hosts`, `same_hostname` or `silent`, and of a deployment also `agent_too_old`.
    """

    agent_id: uuid.UUID
    agent_name: str
    code: str
    detail: str


_IDENTITY = (
    "id",
    "name",
    "environment_id",
    "hostname",
    "last_seen_at",
    "created_at",
    "revoked_at",
    "two_hosts_at",
    "version",
)


def for_warnings(agent_ids: Iterable[uuid.UUID]) -> list[Agent]:
    """Return the enrolled agents of `agent_ids` by name, with only the columns for warnings."""
    rows = Agent.objects.enrolled().only(*_IDENTITY)
    found = [agent for chunk in in_chunks(agent_ids) for agent in rows.filter(pk__in=chunk)]
    return sorted(found, key=lambda agent: agent.name)


def same_hostname(agents: Iterable[Agent]) -> dict[uuid.UUID, list[Agent]]:
    """Return for each of `agents` the other agents of its environment with the same host name.

    Usually one of them is left from a host that was set up again.
    """
    named = [agent for agent in agents if agent.hostname]
    if not named:
        return {}
    rows = Agent.objects.enrolled().filter(environment__in={agent.environment_id for agent in named})
    by_name: dict[tuple[uuid.UUID, str], list[Agent]] = {}
    for hostnames in in_chunks({agent.hostname for agent in named}):
        for row in rows.filter(hostname__in=hostnames).only(*_IDENTITY).order_by("pk"):
            by_name.setdefault((row.environment_id, row.hostname), []).append(row)
    found = {a.pk: [o for o in by_name.get((a.environment_id, a.hostname), ()) if o.pk != a.pk] for a in named}
    return {pk: others for pk, others in found.items() if others}


def _last_seen(agent: Agent) -> str:
    return f"last seen {clock.rfc3339(agent.last_seen_at)}" if agent.last_seen_at else "never seen"


def describe_same_hostname(others: Sequence[Agent]) -> str:
    """Return a sentence about the most recently seen agent with the same host name, and the number of others."""
    latest = max(others, key=lambda agent: (agent.last_seen_at is not None, agent.last_seen_at or agent.created_at))
    more = f", and {len(others) - 1} more" if len(others) > 1 else ""
    return f"Another agent in this environment has this host name: {latest.name} ({_last_seen(latest)}){more}."


def warnings_about(agents: Iterable[Agent], now: dt.datetime) -> list[AgentWarning]:
    """Return the warnings about `agents` at `now`, in their order: two hosts with one identity, the same host name as
    another agent where one of both is offline, or no heartbeat for so long that it is offline.
    """
    chosen = list(agents)
    twins = same_hostname(chosen)
    found: list[AgentWarning] = []
    for agent in chosen:
        if agent.reports_from_two_hosts(now):
            detail = "Two processes report under this identity: the state of one host was copied to another."
            found.append(AgentWarning(agent.pk, agent.name, "two_hosts", detail))
        # several agents that report at the same time are several agents on one host
        others = [
            other
            for other in twins.get(agent.pk, [])
            if Liveness.OFFLINE in (agent.status_at(now), other.status_at(now))
        ]
        if others:
            found.append(AgentWarning(agent.pk, agent.name, "same_hostname", describe_same_hostname(others)))
        if agent.status_at(now) == Liveness.OFFLINE:
            found.append(AgentWarning(agent.pk, agent.name, "silent", f"It is offline, {_last_seen(agent)}."))
    return found


def enrollment_tokens(scope: Scope) -> models.QuerySet[EnrollmentToken]:
    """The environment's enrollment tokens that are not deleted."""
    return EnrollmentToken.objects.filter(environment=scope.require_environment(), revoked_at__isnull=True)


def agents_note(scope: Scope) -> list[str]:
    """Return a sentence about the effect of deleting `scope` on the hosts below it, or nothing without hosts."""
    rows = Agent.objects.enrolled().filter(scope.below("environment__"), environment__deleted_at__isnull=True)
    online = rows.with_liveness(Liveness.ONLINE, clock.now()).count()
    if not online:
        return []
    hosts = "1 agent is online. It keeps" if online == 1 else f"{online} agents are online. They keep"
    return [f"{hosts} running their current bundles, and the control plane can't reach them any more."]
