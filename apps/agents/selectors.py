"""Reads of agents."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from django.db import models

from apps.agents.models import Agent, AgentQuerySet, EnrollmentToken
from apps.core.errors import NotFound
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


def get_agent(scope: Scope, agent_id: uuid.UUID) -> Agent:
    """One agent of the environment. NotFound otherwise."""
    agent = all_in(scope).filter(pk=agent_id).first()
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
