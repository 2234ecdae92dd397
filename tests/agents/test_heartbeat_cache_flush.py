"""A row that the database refuses does not keep the other rows from being written."""

from __future__ import annotations

import pytest
from django.db import connection, transaction

from apps.agents import heartbeat_cache
from apps.agents.heartbeat_cache import flush
from apps.agents.models import Agent, AgentKey
from apps.agents.services import Heartbeat
from apps.core.db import lock_row
from tests.support import Racer, Tenant

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def _in_batches(transactional_db: None) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("heartbeats are written in batches on PostgreSQL only")


def test_a_row_that_is_refused_holds_up_no_other(tenant: Tenant) -> None:
    rows = [Agent.objects.create(environment=tenant.dev, name=f"a{n}") for n in range(9)]
    for row in rows:
        metrics = {"x": "\0"} if row == rows[4] else {}
        heartbeat_cache.queue_last_seen(AgentKey(agent=row), Heartbeat("busy", "1.0", None, 1, metrics=metrics))
    heartbeat_cache.flush_last_seen()
    flush._flusher.pending.clear()
    flush.end()
    written = Agent.objects.filter(last_seen_at__isnull=False, reported_status="busy")
    assert set(written) == set(rows) - {rows[4]}


def test_a_key_or_an_agent_that_is_locked_is_not_waited_for(tenant: Tenant) -> None:
    """The purge deletes keys in another order: a flush that waited for one, with the others locked, could deadlock with it."""
    agents = [Agent.objects.create(environment=tenant.dev, name=f"a{n}") for n in range(3)]
    keys = [AgentKey.objects.create(agent=agent, sha256=f"{n}", public_id=f"{n}") for n, agent in enumerate(agents)]
    for key in keys:
        heartbeat_cache.queue_last_seen(key, Heartbeat("busy", "1.0", None, 1))
    with transaction.atomic():
        assert lock_row(AgentKey.objects.filter(pk=keys[1].pk)) is not None
        assert lock_row(Agent.objects.filter(pk=agents[2].pk)) is not None
        writing = Racer(heartbeat_cache.flush_last_seen)
        assert not writing.until_it_waits()
    assert writing.outcome() == 2
    flush.end()
    assert set(Agent.objects.filter(last_seen_at__isnull=False)) == set(agents)
    assert set(AgentKey.objects.filter(last_used_at__isnull=False)) == {keys[0], keys[2]}
