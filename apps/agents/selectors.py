"""Reads of agents."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping

from django.db import models

from apps.agents.models import Agent, AgentQuerySet, EnrollmentToken, Liveness
from apps.core.errors import NotFound
from apps.core.prepared import Prepared
from apps.tenancy.scope import Scope


def all_in(scope: Scope) -> AgentQuerySet:
    """Every agent of the scope's environment, the revoked ones too."""
    return Agent.objects.filter(environment=scope.here)


def in_environment(scope: Scope) -> AgentQuerySet:
    """The agents of the scope's environment that can be deployed to."""
    return all_in(scope).enrolled()


def by_labels(scope: Scope, labels: Mapping[str, str]) -> list[Agent]:
    """Those of `in_environment` that carry every one of `labels`, oldest first."""
    wanted = labels.items()
    return [agent for agent in in_environment(scope).order_by("pk") if wanted <= agent.labels.items()]


def unwell(agent_ids: Iterable[uuid.UUID], deployment_id: uuid.UUID) -> dict[uuid.UUID, str]:
    """Those of `agent_ids` whose last heartbeat said that they are not well, with why, unless it spoke of something other
    than `deployment_id`."""
    rows = Agent.objects.filter(pk__in=list(agent_ids), healthy=False).filter(
        models.Q(running_deployment_id=deployment_id) | models.Q(running_deployment_id__isnull=True)
    )
    return dict(rows.values_list("pk", "health_detail"))


def gone_silent(agent_ids: Iterable[uuid.UUID], now: dt.datetime) -> list[uuid.UUID]:
    """Those of `agent_ids` that used to send heartbeats and are offline at `now`."""
    rows = Agent.objects.with_liveness(Liveness.OFFLINE, now).filter(pk__in=list(agent_ids), last_seen_at__isnull=False)
    return list(rows.values_list("pk", flat=True))


_agent_in = Prepared(lambda environment_id, pk: Agent.objects.filter(environment_id=environment_id, pk=pk))


def get_agent(scope: Scope, agent_id: uuid.UUID) -> Agent:
    """One agent of the environment. NotFound otherwise."""
    agent = _agent_in.first(scope.here.pk, agent_id)
    if agent is None:
        raise NotFound()
    return agent


def enrollment_tokens(scope: Scope) -> models.QuerySet[EnrollmentToken]:
    """The environment's enrollment tokens that were not taken back."""
    return EnrollmentToken.objects.filter(environment=scope.here, revoked_at__isnull=True)


def get_enrollment_token(scope: Scope, token_id: uuid.UUID) -> EnrollmentToken:
    """One enrollment token of the environment. NotFound otherwise."""
    token = enrollment_tokens(scope).filter(pk=token_id).first()
    if token is None:
        raise NotFound()
    return token
