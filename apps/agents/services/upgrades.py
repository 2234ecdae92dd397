"""Permission of agents to install the agent program that this control plane serves."""

from __future__ import annotations

import datetime as dt

from django.db import transaction

from apps.agents.models import Agent
from apps.core import clock
from apps.core.errors import Forbidden
from apps.tenancy.registry import EnvironmentSettings, SettingsChange
from apps.tenancy.selectors import lock_environment

TAKES_UPGRADES_FOR = dt.timedelta(days=1)
"""How long a host counts as upgradable after it last asked. It asks every 15 minutes."""
ASKED_NOTED_EVERY = dt.timedelta(hours=1)


def check_upgrade_percent(change: SettingsChange) -> EnvironmentSettings:
    """Allow only people to raise `agent_upgrade_percent` (a settings check of `apps.tenancy`). Raises Forbidden
    `person_required`."""
    former = change.before.agent_upgrade_percent if change.before else 0
    if change.after.agent_upgrade_percent > former and not change.actor.is_person:
        raise Forbidden("Only a person can let more agents upgrade.", code="person_required")
    return change.after


def allow_upgrade(*, agent: Agent, version: str) -> bool:
    """Return whether the host of `agent` may install `version` of the program now, and record the request.

    Of the n upgradable agents of the environment (those that asked within a day), the first ceil(percent * n / 100) by
    id, which is the order of enrollment, are allowed, and never more than that at once. An agent once allowed a version
    keeps it when the percentage or the number of agents falls; another version is decided anew.
    """
    _note_asked(agent)
    if agent.upgrade_allowed_version == version:
        return True
    percent = agent.environment.agent_upgrade_percent
    if not _is_among_first(agent, version, percent):
        return False
    with transaction.atomic():
        environment = lock_environment(agent.environment_id)
        if not _is_among_first(agent, version, environment.agent_upgrade_percent):
            return False
        changed = Agent.objects.enrolled().filter(pk=agent.pk).update(upgrade_allowed_version=version)
    agent.upgrade_allowed_version = version
    return changed == 1


def _note_asked(agent: Agent) -> None:
    now = clock.now()
    if agent.upgrade_asked_at is None or now - agent.upgrade_asked_at >= ASKED_NOTED_EVERY:
        Agent.objects.filter(pk=agent.pk).update(upgrade_asked_at=now)
        agent.upgrade_asked_at = now


def _is_among_first(agent: Agent, version: str, percent: int) -> bool:
    if percent == 0:
        return False
    since = clock.now() - TAKES_UPGRADES_FOR
    takers = Agent.objects.enrolled().filter(environment_id=agent.environment_id, upgrade_asked_at__gt=since)
    allowed = -(-percent * takers.count() // 100)
    return (
        takers.filter(pk__lt=agent.pk).count() < allowed
        and takers.filter(upgrade_allowed_version=version).count() < allowed
    )
