"""A row that the database refuses does not keep the other rows from being written."""

from __future__ import annotations

import pytest
from django.db import connection

from apps.agents import heartbeat_cache
from apps.agents.heartbeat_cache import flush
from apps.agents.models import Agent, AgentKey
from apps.agents.services import Heartbeat
from tests.support import Tenant

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def test_a_row_that_is_refused_holds_up_no_other(tenant: Tenant) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("heartbeats are written in batches on PostgreSQL only")
    rows = [Agent.objects.create(environment=tenant.dev, name=f"a{n}") for n in range(9)]
    for row in rows:
        metrics = {"x": "\0"} if row == rows[4] else {}
        heartbeat_cache.queue_last_seen(AgentKey(agent=row), Heartbeat("busy", "1.0", None, 1, metrics=metrics))
    heartbeat_cache.flush_last_seen()
    flush._flusher.pending.clear()
    flush.end()
    written = Agent.objects.filter(last_seen_at__isnull=False, reported_status="busy")
    assert set(written) == set(rows) - {rows[4]}
