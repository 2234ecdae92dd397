"""Heartbeats, with the heartbeat cache and without it: every change takes effect within a second in every process."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from apps.agents import heartbeat_cache, services
from apps.agents.heartbeat_cache import keys
from apps.agents.models import Agent, AgentKey
from apps.agents.registry import Desired
from apps.core import wake
from apps.signing.models import KeySetVersion
from tests.api.test_parsers import HungUp
from tests.flows.world import until, within

from .conftest import EnrolledAgent, FakeSource, World

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

SHA = "ab" * 32
DEPLOYMENT = str(uuid.uuid4())
RUNNING = {"deployment_id": DEPLOYMENT, "bundle_sha256": SHA, "sequence": 7}


@pytest.fixture(autouse=True)
def _cache(heartbeats_cached: bool) -> None:
    """Run each test with the cache and without it."""


def queries_of(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return the result of `call` and the number of its queries, without that for rate overrides, made every few seconds."""
    with CaptureQueriesContext(connection) as captured:
        answer = call()
    return answer, sum("limits_rateoverride" not in (query["sql"] or "") for query in captured)


@pytest.fixture
def agent(world: World, source: FakeSource) -> EnrolledAgent:
    """An agent whose heartbeats report nothing new."""
    made = world.enroll()
    repeat_heartbeat(made)
    return made


def repeat_heartbeat(agent: EnrolledAgent, **change: Any) -> None:
    """Send the same heartbeat twice, and where there is a cache until it is answered from it."""
    for _ in range(2):
        assert agent.beat(**change).status_code == 200
    if is_cached():
        until(lambda: queries_of(lambda: agent.beat(**change))[1] == 0)


def is_cached() -> bool:
    return settings.BYTEOR_HEARTBEAT_CACHE and connection.vendor == "postgresql"


def seq_of(answer: Any) -> int:
    assert answer.status_code == 200, answer.content
    return int(answer.json()["desired"]["directive"]["directive_seq"])


def want(source: FakeSource, agent: EnrolledAgent, sequence: int) -> None:
    """Change the desired state of `agent`, and announce it as the app that deploys does."""
    deployment = uuid.uuid4()
    source.wanted = Desired("activate", deployment, deployment, SHA, sequence)
    with transaction.atomic():
        Agent.objects.filter(pk=agent.id).update(ever_assigned=True)
        services.announce([uuid.UUID(agent.id)])


def test_the_cached_answer_equals_the_full_one_and_needs_no_query(agent: EnrolledAgent) -> None:
    short, queries = queries_of(agent.beat)
    if is_cached():
        # not from the cache while this process was not notified for a second, as on a busy machine
        short, queries = until(lambda: found if (found := queries_of(agent.beat))[1] == 0 else None)
    # without the cache: the key with the agent, and the write; the test's source of directives asks nothing
    assert queries == (0 if is_cached() else 2)
    heartbeat_cache.close_heartbeat_cache()
    full = agent.beat()
    assert short.status_code == full.status_code == 200
    a, b = short.json(), full.json()
    for body in (a, b):
        for name in ("issued_at", "expires_at"):
            del body["desired"]["directive"][name]
        del body["desired"]["envelope"]
    assert a == b
    for name in ("Content-Type", "Cache-Control", "Content-Security-Policy", "Allow", "X-Content-Type-Options"):
        assert short[name] == full[name]
    assert short["X-Request-Id"] != full["X-Request-Id"]


def test_a_change_back_before_the_notification_of_the_change_is_stored(
    agent: EnrolledAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this process wrote itself is newer than the row that it has cached."""
    monkeypatch.setattr(keys._memory, "invalidate", lambda channel: None)
    monkeypatch.setattr(keys._memory, "holds", lambda cached: True)
    for running, sequence in ((RUNNING, 7), (None, None), (RUNNING, 7)):
        assert agent.beat(running=running).status_code == 200
        heartbeat_cache.flush_last_seen()
        assert Agent.objects.get().running_sequence == sequence


def test_reported_fields_and_the_use_of_the_key_are_written_with_the_next_batch(
    world: World, agent: EnrolledAgent
) -> None:
    before = Agent.objects.get().last_seen_at
    AgentKey.objects.update(last_used_at=None)
    agent.beat(status="busy", version="2.0", metrics={"records": 5}, key_set_version=2)
    until(lambda: Agent.objects.get().version == "2.0")
    row = Agent.objects.get()
    assert (row.reported_status, row.metrics, row.key_set_version) == ("busy", {"records": 5}, 2)
    assert before is not None
    assert row.last_seen_at is not None
    assert row.last_seen_at > before
    assert AgentKey.objects.get().last_used_at is not None
    assert world.vera.get(f"{world.env}/agents/{agent.id}").json()["status"] == "online"


def test_what_means_something_is_written_before_the_answer(
    world: World, agent: EnrolledAgent, source: FakeSource
) -> None:
    count = len(source.heartbeats)
    assert agent.beat(running=RUNNING).status_code == 200
    assert Agent.objects.get().running == RUNNING
    assert len(source.heartbeats) == count + 1
    repeat_heartbeat(agent, running=RUNNING)
    for ill in ({"health": {"ok": False, "detail": "adapter is down"}}, {"status": "unhealthy"}):
        count = len(source.heartbeats)
        for _ in range(2):
            assert agent.beat(running=RUNNING, **ill).status_code == 200
            assert not Agent.objects.get().healthy
        assert [well for _, well, _ in source.heartbeats[count:]] == [False, False]
        assert agent.beat(running=RUNNING).status_code == 200
        assert Agent.objects.get().healthy
    agent.beat()
    assert Agent.objects.get().running is None


def test_a_revoked_key_is_refused_within_a_second(world: World, agent: EnrolledAgent) -> None:
    assert world.bob.post(f"{world.env}/agents/{agent.id}/revoke-key", {}).status_code == 200
    within(1, lambda: agent.beat().status_code == 401)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE agents_agentkey SET revoked_at = CURRENT_TIMESTAMP",
        "UPDATE agents_agentkey SET expires_at = CURRENT_TIMESTAMP",
        "DELETE FROM agents_agentkey",
        "UPDATE tenancy_environment SET deleted_at = CURRENT_TIMESTAMP",
    ],
)
def test_any_process_can_end_it(agent: EnrolledAgent, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
    within(1, lambda: agent.beat().status_code == 401)


def test_a_removed_agent_and_a_deleted_tree_are_refused_within_a_second(world: World, agent: EnrolledAgent) -> None:
    other = world.enroll()
    repeat_heartbeat(other)
    assert world.bob.delete(f"{world.env}/agents/{agent.id}").status_code == 204
    within(1, lambda: agent.beat().status_code == 401)
    assert other.beat().status_code == 200
    project = world.env.rsplit("/environments/", 1)[0]
    assert world.alice.delete(project).status_code == 204
    within(1, lambda: other.beat().status_code == 401)


def test_another_directive_is_seen_within_a_second_and_never_an_older_one_after_it(
    agent: EnrolledAgent, source: FakeSource
) -> None:
    last = seq_of(agent.beat())
    for sequence in range(1, 6):
        want(source, agent, sequence)
        seen = []
        within(1, lambda seen=seen, last=last: seen.append(seq_of(agent.beat())) or seen[-1] > last)  # type: ignore[misc]
        assert seen == sorted(seen)
        last = seen[-1]
        repeat_heartbeat(agent)


def test_after_a_poll_returned_a_newer_directive_the_heartbeat_returns_no_older_one(
    agent: EnrolledAgent, source: FakeSource
) -> None:
    last = seq_of(agent.beat())
    # nothing is announced: only the poll can know
    source.wanted = Desired("stop", None, uuid.uuid4())
    polled = seq_of(agent.get(f"deployment?after={last}"))
    assert polled > last
    assert seq_of(beat_having_seen(agent, str(polled))) == polled
    within(1, lambda: seq_of(agent.beat()) == polled)


def test_an_agent_that_has_seen_a_newer_directive_elsewhere_gets_no_older_one(
    agent: EnrolledAgent, source: FakeSource
) -> None:
    sent = seq_of(agent.beat())
    source.wanted = Desired("stop", None, uuid.uuid4())
    assert seq_of(beat_having_seen(agent, str(sent + 1))) > sent


@pytest.mark.parametrize("seen", ["", "x", "-1", "1.5", "\xb2", "9" * 5000])
def test_a_number_that_is_none_is_ignored(agent: EnrolledAgent, seen: str) -> None:
    assert seq_of(beat_having_seen(agent, seen)) == seq_of(agent.beat())


def beat_having_seen(agent: EnrolledAgent, seq: str) -> Any:
    return agent.raw("POST", "heartbeat", json.dumps(agent.heartbeat_body()).encode(), HTTP_DIRECTIVE_SEQ=seq)


def test_a_rotated_key_works_and_the_old_one_expires_although_it_is_cached(world: World, agent: EnrolledAgent) -> None:
    fresh = EnrolledAgent(world, agent.id, agent.post("rotate-key", {}).json()["api_key"])
    repeat_heartbeat(agent)
    assert fresh.beat().status_code == 200
    repeat_heartbeat(fresh)
    old = AgentKey.objects.get(expires_at__isnull=False)
    assert agent.beat().status_code == 200
    AgentKey.objects.filter(pk=old.pk).update(expires_at=old.created_at)
    within(1, lambda: agent.beat().status_code == 401)
    assert fresh.beat().status_code == 200


def test_a_new_key_set_is_announced_within_a_second(world: World, agent: EnrolledAgent) -> None:
    version = agent.beat().json()["key_set_version"]
    KeySetVersion.objects.create(organization=world.organization, version=version + 1, envelope={})
    within(1, lambda: agent.beat().json()["key_set_version"] == version + 1)


def test_without_notifications_nothing_is_answered_from_memory(
    agent: EnrolledAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wake, "delivered_within", lambda seconds: False)
    answer, queries = queries_of(agent.beat)
    assert answer.status_code == 200
    assert queries > 0


def test_a_body_that_ends_early_is_refused_as_the_full_view_refuses_it(agent: EnrolledAgent) -> None:
    def beat() -> tuple[int, str]:
        body = json.dumps(agent.heartbeat_body()).encode()
        answer = agent.raw("POST", "heartbeat", body, **{"wsgi.input": HungUp()})  # type: ignore[arg-type]
        return answer.status_code, answer.json()["code"]

    cached = beat()
    heartbeat_cache.close_heartbeat_cache()
    assert cached == beat() == (400, "malformed_body")


def test_only_its_own_path_and_method(world: World, agent: EnrolledAgent) -> None:
    other = world.enroll()
    body = agent.heartbeat_body()
    assert world.holder(agent.token).post(f"/api/v1/agents/{other.id}/heartbeat", body).status_code == 404
    assert world.holder(agent.token).get(f"/api/v1/agents/{agent.id}/heartbeat").status_code == 405
    assert world.holder(agent.token + "x").post(f"/api/v1/agents/{agent.id}/heartbeat", body).status_code == 401


BODIES: list[bytes] = [
    json.dumps({"status": "idle", "version": "1.0", "running": None, "key_set_version": 1, **change}).encode()
    for change in (
        {"status": ""},
        {"status": " idle "},
        {"status": "idle\n"},
        {"status": "i" * 64},
        {"status": "i" * 65},
        {"status": "idlé"},
        {"version": ""},
        {"version": "v" * 65},
        {"key_set_version": True},
        {"key_set_version": 1.0},
        {"key_set_version": -1},
        {"key_set_version": 2**31},
        {"running": {**RUNNING, "sequence": True}},
        {"running": {**RUNNING, "sequence": 7.0}},
        {"running": {**RUNNING, "deployment_id": DEPLOYMENT.upper()}},
        {"running": {**RUNNING, "extra": 1}},
        {"health": {"ok": 1}},
        {"health": {"ok": True, "detail": None}},
        {"health": {"ok": True, "detail": "so so"}},
        {"health": {}},
        {"metrics": None},
        {"metrics": []},
        {"metrics": {"a": "b" * 2000}},
        {"metrics": {"a": "b" * 17000}},
        {"metrics": {"a": "b" * 66000}},
        {"metrics": {"n": 1e15, "s": "\x00"}},
        {"unknown": 1},
    )
] + [
    b"{}",
    b"[]",
    b"",
    b"\xff",
    b'{"status": "idle", "status": "idle", "version": "1", "key_set_version": 1}',
    b'{"status": "idle", "version": "1", "key_set_version": 1, "metrics": {"x": NaN}}',
    b'{"status": "idle", "version": "1", "key_set_version": 1, "metrics": {"x": 1e999}}',
    b'{"status": "idle", "version": "1", "key_set_version": 1, "metrics": {"x": "\\ud800"}}',
]


@pytest.mark.parametrize("running", [None, RUNNING], ids=["idle", "running"])
def test_every_body_is_judged_as_the_full_view_judges_it(world: World, agent: EnrolledAgent, running: Any) -> None:
    """Each body, once by an agent that is remembered and once with nothing remembered: same status, problem and row."""
    repeat_heartbeat(agent, running=running)
    shown = ("reported_status", "version", "healthy", "health_detail", "metrics", "key_set_version", "running_sequence")

    def outcome(body: bytes) -> tuple[int, Any, Any]:
        answer = world.holder(agent.token).raw("POST", f"/api/v1/agents/{agent.id}/heartbeat", body)
        heartbeat_cache.flush_last_seen()
        problem = answer.json() if answer.status_code >= 400 else {}
        return answer.status_code, (problem.get("code"), problem.get("errors")), Agent.objects.values(*shown).get()

    for body in BODIES:
        by_memory = outcome(body)
        heartbeat_cache.close_heartbeat_cache()
        in_full = outcome(body)
        heartbeat_cache.open_heartbeat_cache()
        agent.beat(running=running)
        agent.beat(running=running)
        assert by_memory == in_full, body
