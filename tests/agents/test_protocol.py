"""What an enrolled agent calls: heartbeat, poll, reports, bundles, keys."""

from __future__ import annotations

import datetime as dt
import threading
import time
import uuid
from typing import Any

import pytest
import time_machine
from django.db import DatabaseError, connection

from apps.agents import services
from apps.agents.api import waiting as agent_waiting
from apps.agents.api.protocol import DeploymentView
from apps.agents.models import Agent, AgentKey
from apps.agents.registry import Desired
from apps.audit.models import AuditEvent
from apps.core import clock, wake
from apps.core.errors import Conflict
from apps.runtime import trust
from apps.signing import services as signing
from apps.tenancy import services as tenancy
from apps.tenancy.selectors import scope_of
from byteor.server.limits import Limits
from tests.served import Served, serving

from .conftest import SYSTEM, EnrolledAgent, FakeSource, World

pytestmark = pytest.mark.django_db

SHA = "ab" * 32


def activate(sequence: int = 5) -> Desired:
    deployment = uuid.uuid4()
    return Desired("activate", deployment, deployment, SHA, sequence)


def polling(world: World) -> tuple[EnrolledAgent, int]:
    """An agent and the number of its last directive."""
    agent = world.enroll()
    return agent, agent.beat().json()["desired"]["directive"]["directive_seq"]


def poll_path(agent: EnrolledAgent, seq: int) -> str:
    """A poll of 20 s for what is above `seq`."""
    return f"{agent.path}/deployment?wait=20&after={seq}"


def number_for_all(world: World, desired: Desired, agents: list[EnrolledAgent]) -> None:
    """What assigning a deployment does for its agents: number, then announce."""
    ids = [uuid.UUID(agent.id) for agent in agents]

    def assign() -> None:
        services.note_assigned(ids, desired, sequence=desired.sequence or 0)
        services.announce(ids)

    world.in_transaction(assign, write=True)


def refuse_to_be_called(*given: object, **named: object) -> None:
    raise AssertionError("the view was called")


def opened(world: World, agent: EnrolledAgent, body: dict[str, Any]) -> trust.Directive:
    """The directive in an answer, checked as an agent would."""
    return trust.verify_directive(
        body["desired"]["envelope"],
        signing.trusted_keys(world.organization.pk),
        environment_id=str(world.environment.pk),
        agent_id=agent.id,
        now_ms=clock.now_ms(),
        last_seq=0,
        last_content_digest=None,
    )


class TestHeartbeat:
    """One round trip."""

    def test_makes_an_agent_online_and_returns_its_directive(self, world: World, source: FakeSource) -> None:
        agent = world.enroll()
        answer = agent.beat()
        assert answer.status_code == 200
        body = answer.json()
        assert body["url"] is None
        assert body["heartbeat_seconds"] == 10
        assert body["key_set_version"] >= 1
        directive = opened(world, agent, body)
        assert directive.directive == "none"
        assert directive.bundle_sha256 is None
        assert body["desired"]["directive"]["directive_seq"] == directive.directive_seq
        shown = world.vera.get(f"{world.env}/agents/{agent.id}").json()
        assert shown["status"] == "online"
        assert shown["version"] == "1.0"
        assert shown["running"] is None

    def test_shows_what_the_host_reports_to_run(self, world: World, source: FakeSource) -> None:
        agent = world.enroll()
        running = {"deployment_id": str(uuid.uuid4()), "bundle_sha256": SHA, "sequence": 7}
        assert agent.beat(running=running, metrics={"records": 12}).status_code == 200
        shown = world.vera.get(f"{world.env}/agents/{agent.id}").json()
        assert shown["running"] == running
        assert shown["metrics"] == {"records": 12}
        assert source.heartbeats[-1][1] is True
        agent.beat(health={"ok": False, "detail": "adapter is down"})
        shown = world.vera.get(f"{world.env}/agents/{agent.id}").json()
        assert shown["running"] is None
        assert shown["healthy"] is False
        assert shown["health_detail"] == "adapter is down"
        assert source.heartbeats[-1][1] is False

    def test_names_the_bundle_under_the_callers_own_prefix(self, world: World, source: FakeSource) -> None:
        agent = world.enroll()
        source.wanted = activate()
        for prefix in ("/api/v1", "/v1"):
            answer = world.holder(agent.token).post(f"{prefix}/agents/{agent.id}/heartbeat", agent.heartbeat_body())
            assert answer.json()["url"] == (
                f"{prefix}/agents/{agent.id}/deployments/{source.wanted.deployment_id}/bundle"
            )
        directive = opened(world, agent, answer.json())
        assert directive.directive == "activate"
        assert directive.bundle_sha256 == SHA
        assert directive.sequence == 5
        assert directive.expires_at - directive.issued_at == 600_000

    def test_numbers_a_directive_anew_only_when_it_changes(self, world: World, source: FakeSource) -> None:
        agent = world.enroll()
        before = clock.now_ms()

        def seq() -> int:
            return int(agent.beat().json()["desired"]["directive"]["directive_seq"])

        first = seq()
        assert first >= before
        assert seq() == first
        source.wanted = activate()
        second = seq()
        assert second > first
        assert seq() == second
        source.wanted = Desired("stop", None, source.wanted.deployment_id)
        third = seq()
        assert third > second
        Agent.objects.update(directive_seq=third + 10**9)  # a clock that is set back must not reduce the number
        source.wanted = activate()
        assert seq() == third + 10**9 + 1

    @pytest.mark.parametrize(
        "change",
        [
            {"status": None},
            {"status": 5},
            {"status": "s" * 65},
            {"version": ["1"]},
            {"version": "v" * 65},
            {"key_set_version": "1"},
            {"key_set_version": -1},
            {"key_set_version": 2**31},
            {"key_set_version": True},
            {"running": []},
            {"running": {}},
            {"running": {"deployment_id": "x", "bundle_sha256": SHA, "sequence": 1}},
            {"running": {"deployment_id": str(uuid.uuid4()), "bundle_sha256": SHA.upper(), "sequence": 1}},
            {"running": {"deployment_id": str(uuid.uuid4()), "bundle_sha256": SHA, "sequence": 2**60}},
            {"health": {"ok": "yes"}},
            {"metrics": [1]},
            {"metrics": {"x": "y" * 65_536}},
        ],
    )
    def test_of_a_wrong_shape_is_400_and_changes_nothing(
        self, world: World, source: FakeSource, change: dict[str, Any]
    ) -> None:
        agent = world.enroll()
        answer = agent.post("heartbeat", {**agent.heartbeat_body(), **change})
        assert answer.status_code == 400
        assert answer.json()["errors"]
        assert Agent.objects.get().last_seen_at is None

    def test_unknown_fields_of_a_newer_agent_are_ignored(self, world: World, source: FakeSource) -> None:
        agent = world.enroll()
        running = {"deployment_id": str(uuid.uuid4()), "bundle_sha256": SHA, "sequence": 1, "since": 1}
        more = {
            "running": running,
            "health": {"ok": True, "load": 0.5},
            "temperature": 20,
            "metrics": {"x": "y" * 65_000},
        }
        assert agent.post("heartbeat", {**agent.heartbeat_body(), **more}).status_code == 200
        assert Agent.objects.get().running_sequence == 1
        assert agent.get("deployment?after=0&wait=0&key_set_version=1&colour=blue&colour=red").status_code == 200
        assert agent.get("signing-keys?after=0&page=7").status_code == 200
        assert agent.post("rotate-key", {"reason": "age"}).status_code == 200

    @pytest.mark.parametrize("missing", ["status", "version", "key_set_version"])
    def test_without_a_needed_field_is_400(self, world: World, source: FakeSource, missing: str) -> None:
        agent = world.enroll()
        body = agent.heartbeat_body()
        del body[missing]
        assert agent.post("heartbeat", body).json()["errors"][0]["pointer"] == f"/{missing}"

    @pytest.mark.parametrize(
        "raw",
        [b"", b"null", b"[]", b'{"status": "\\u0000"}', b'{"metrics": {"x": 1e999}}', b"\xff\xfe", b'"x"'],
    )
    def test_that_is_no_proper_json_object_is_400(self, world: World, source: FakeSource, raw: bytes) -> None:
        agent = world.enroll()
        assert world.holder(agent.token).raw("POST", f"/api/v1/agents/{agent.id}/heartbeat", raw).status_code == 400

    def test_with_a_number_beyond_all_bounds_is_400(self, world: World, source: FakeSource) -> None:
        agent = world.enroll()
        raw = b'{"status": "ok", "version": "1", "key_set_version": 1, "metrics": {"x": 1e999}}'
        assert world.holder(agent.token).raw("POST", f"/api/v1/agents/{agent.id}/heartbeat", raw).status_code == 400

    def test_that_is_huge_is_413_and_without_a_length_411(self, world: World) -> None:
        agent = world.enroll()
        where = f"/api/v1/agents/{agent.id}/heartbeat"
        assert world.holder(agent.token).raw("POST", where, b" " * (4 * 1024 * 1024 + 1)).status_code == 413
        assert world.holder(agent.token).raw("POST", where, b"{}", HTTP_TRANSFER_ENCODING="chunked").status_code == 411

    def test_silence_makes_it_late_then_offline(self, world: World, source: FakeSource) -> None:
        agent = world.enroll()
        agent.beat()
        for seconds, status in ((15, "online"), (25, "late"), (45, "late"), (55, "offline")):
            with time_machine.travel(clock.now() + dt.timedelta(seconds=seconds), tick=False):
                assert world.vera.get(f"{world.env}/agents/{agent.id}").json()["status"] == status
                for word in ("online", "late", "offline"):
                    found = world.vera.get(f"{world.env}/agents?status={word}").json()["results"]
                    assert bool(found) == (word == status), (seconds, word)


class TestTheKey:
    """Only the agent's own key opens the endpoints of the agent."""

    def endpoints(self, agent_id: str) -> list[tuple[str, str]]:
        base = f"/api/v1/agents/{agent_id}"
        deployment = uuid.uuid4()
        return [
            ("POST", f"{base}/heartbeat"),
            ("GET", f"{base}/deployment"),
            ("POST", f"{base}/deployments/{deployment}/status"),
            ("GET", f"{base}/deployments/{deployment}/bundle"),
            ("GET", f"{base}/signing-keys"),
            ("POST", f"{base}/rotate-key"),
        ]

    def test_nothing_else_is_taken(self, world: World) -> None:
        agent = world.enroll()
        for method, path in self.endpoints(agent.id):
            for text, code in (
                (world.alice.token, "wrong_credential"),
                (world.token(), "wrong_credential"),
                (world.unknown("agt"), "invalid_token"),
                (agent.token[:-1] + ("a" if agent.token[-1] != "a" else "b"), "malformed_token"),
            ):
                answer = world.holder(text).call(method, path, {} if method == "POST" else None)
                assert (answer.status_code, answer.json()["code"]) == (401, code), path
            assert world.anonymous.call(method, path, {} if method == "POST" else None).status_code == 401
            assert world.signed_in("alice").call(method, path, None).status_code == 401

    def test_another_agent_is_404_of_this_environment_or_a_foreign_one(self, world: World) -> None:
        agent, neighbour = world.enroll(), world.enroll()
        for other in (neighbour.id, world.enroll(foreign=True).id, str(uuid.uuid4())):
            for method, path in self.endpoints(other):
                answer = world.holder(agent.token).call(method, path, {} if method == "POST" else None)
                assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path

    def test_it_opens_no_endpoint_of_people(self, world: World) -> None:
        agent = world.enroll()
        for path in ("/api/v1/me", world.env, f"{world.env}/agents", f"{world.env}/agents/{agent.id}"):
            answer = world.holder(agent.token).get(path)
            assert (answer.status_code, answer.json()["code"]) == (401, "wrong_credential")

    def test_it_ends_at_once_with_its_environment_project_or_organization(
        self, world: World, source: FakeSource
    ) -> None:
        agent = world.enroll()
        assert agent.beat().status_code == 200
        tenancy.delete_node(actor=SYSTEM, scope=scope_of(world.environment.project), force=True)
        refused = agent.beat()
        assert (refused.status_code, refused.json()["code"]) == (401, "invalid_token")

    def test_its_use_is_written_at_most_once_a_minute(self, world: World, source: FakeSource) -> None:
        agent = world.enroll()
        start = clock.now()
        seen = []
        for seconds in (0, 20, 59, 61):
            with time_machine.travel(start + dt.timedelta(seconds=seconds), tick=False):
                agent.beat()
                seen.append(AgentKey.objects.get().last_used_at)
        assert seen[0] == seen[1] == seen[2]
        assert seen[3] > seen[2]

    def test_the_wrong_method_is_405_and_a_malformed_id_404(self, world: World) -> None:
        agent = world.enroll()
        assert world.holder(agent.token).get(f"/api/v1/agents/{agent.id}/heartbeat").status_code == 405
        assert world.holder(agent.token).post("/api/v1/agents/not-a-uuid/heartbeat", {}).status_code == 404


class TestRotation:
    """A new key, with the old one's overlap from the new one's first use."""

    def test_both_work_until_ten_minutes_after_the_new_ones_first_use(self, world: World, source: FakeSource) -> None:
        agent = world.enroll()
        agent.beat()
        answer = agent.post("rotate-key", {})
        assert answer.status_code == 200
        fresh = EnrolledAgent(world, agent.id, answer.json()["api_key"])
        now = clock.now()
        with time_machine.travel(now + dt.timedelta(hours=3), tick=False):
            assert agent.beat().status_code == 200  # not used yet: the old one works on
            assert fresh.beat().status_code == 200
            assert agent.beat().status_code == 200
            refused = agent.post("rotate-key", {})
            assert (refused.status_code, refused.json()["code"]) == (409, "key_replaced")
        with time_machine.travel(now + dt.timedelta(hours=3, minutes=10), tick=False):
            expired = agent.beat()
            assert (expired.status_code, expired.json()["code"]) == (401, "token_expired")
            assert fresh.beat().status_code == 200
        assert AuditEvent.objects.filter(action="agent.key_rotated").count() == 1

    def test_asking_again_before_using_it_replaces_the_unused_one(self, world: World, source: FakeSource) -> None:
        agent = world.enroll()
        lost = agent.post("rotate-key", {}).json()["api_key"]
        kept = agent.post("rotate-key", {}).json()["api_key"]
        assert EnrolledAgent(world, agent.id, lost).beat().status_code == 401
        assert EnrolledAgent(world, agent.id, kept).beat().status_code == 200
        events = AuditEvent.objects.filter(action="agent.key_rotated").order_by("seq")
        assert [event.details["repeated"] for event in events] == [False, True]

    def test_takes_an_object(self, world: World) -> None:
        assert world.enroll().post("rotate-key", ["force"]).status_code == 400


class TestReports:
    """Status reports, passed on once their shape is right."""

    BODY = {"status": "activated", "bundle_sha256": SHA, "sequence": 5}

    def test_a_report_reaches_the_app_that_deploys(self, world: World, source: FakeSource) -> None:
        agent, deployment = world.enroll(), uuid.uuid4()
        full = {
            **self.BODY,
            "reason": "",
            "tuning": {"requested": {}, "applied": {}, "degraded": []},
            "log_tail": "x" * 16384,
        }
        answer = agent.post(f"deployments/{deployment}/status", full)
        assert answer.status_code == 200
        who, what, report = source.reports[-1]
        assert str(who) == agent.id
        assert what == deployment
        assert report.status == "activated"
        assert report.log_tail == full["log_tail"]
        assert report.tuning == full["tuning"]
        assert world.vera.get(f"{world.env}/agents/{agent.id}").json()["running"]["bundle_sha256"] == SHA
        assert agent.post(f"deployments/{deployment}/status", full).status_code == 200

    def test_what_is_no_longer_wanted_is_409(self, world: World, source: FakeSource) -> None:
        source.refusal = Conflict("No longer wanted.", code="not_wanted")
        answer = world.enroll().post(f"deployments/{uuid.uuid4()}/status", self.BODY)
        assert (answer.status_code, answer.json()["code"]) == (409, "not_wanted")

    @pytest.mark.parametrize(
        "change",
        [
            {"status": "active"},
            {"status": None},
            {"bundle_sha256": None},
            {"bundle_sha256": "AB" * 32},
            {"sequence": "5"},
            {"sequence": -1},
            {"log_tail": "é" * 8193},
            {"log_tail": "x" * 16385},
            {"reason": "r" * 4097},
            {"tuning": "none"},
            {"tuning": {"applied": "x" * 17000}},
        ],
    )
    def test_a_wrong_shape_is_400(self, world: World, source: FakeSource, change: dict[str, Any]) -> None:
        answer = world.enroll().post(f"deployments/{uuid.uuid4()}/status", {**self.BODY, **change})
        assert answer.status_code == 400
        assert answer.json()["errors"]
        assert not source.reports

    def test_stopped_and_failed_may_name_no_bundle(self, world: World, source: FakeSource) -> None:
        agent = world.enroll()
        for status in ("stopped", "failed"):
            body = {"status": status, "bundle_sha256": None, "sequence": None}
            assert agent.post(f"deployments/{uuid.uuid4()}/status", body).status_code == 200


class TestBundles:
    """Handed to targets alone."""

    def test_a_target_gets_the_bytes_with_their_length(self, world: World, source: FakeSource) -> None:
        agent = world.enroll()
        deployment = uuid.uuid4()
        source.bundles[(uuid.UUID(agent.id), deployment)] = b"archive" * 100_000
        answer = agent.get(f"deployments/{deployment}/bundle")
        assert answer.status_code == 200
        assert answer["Content-Length"] == "700000"
        assert answer["Content-Disposition"].startswith("attachment")
        assert b"".join(answer.streaming_content) == b"archive" * 100_000

    def test_others_get_404(self, world: World, source: FakeSource) -> None:
        agent, neighbour = world.enroll(), world.enroll()
        deployment = uuid.uuid4()
        source.bundles[(uuid.UUID(agent.id), deployment)] = b"archive"
        assert neighbour.get(f"deployments/{deployment}/bundle").status_code == 404
        assert agent.get(f"deployments/{uuid.uuid4()}/bundle").status_code == 404


class TestSigningKeys:
    """The key sets an agent does not know yet."""

    def test_are_given_above_the_one_it_has(self, world: World) -> None:
        agent = world.enroll()
        every = agent.get("signing-keys").json()
        assert every["version"] == 1
        assert len(every["envelopes"]) == 1
        assert every["keys"]
        none_new = agent.get("signing-keys?after=1").json()
        assert none_new["version"] == 1
        assert none_new["envelopes"] == []
        for bad in ("after=x", "after=-1", "after=1&after=2", "after=99999999999999999999"):
            assert agent.get(f"signing-keys?{bad}").status_code == 400


class TestWaitingPoll:
    """GET deployment?wait=N&after=SEQ."""

    def test_answers_at_once_what_is_new_and_204_what_is_known(self, world: World, source: FakeSource) -> None:
        agent = world.enroll()
        first = agent.get("deployment")
        assert first.status_code == 200
        seq = first.json()["desired"]["directive"]["directive_seq"]
        assert agent.get(f"deployment?after={seq}").status_code == 204
        assert agent.get(f"deployment?after={seq - 1}").status_code == 200

    @pytest.mark.django_db(transaction=True)
    def test_with_nothing_new_is_answered_204_at_the_end_of_its_wait(
        self, world: World, source: FakeSource, server: Served
    ) -> None:
        agent, seq = polling(world)
        start = time.monotonic()
        waited = server.call("GET", f"{agent.path}/deployment?wait=1&after={seq}", agent.token)
        assert waited.status == 204
        assert time.monotonic() - start > 0.9
        assert not waited.body
        assert "retry-after" not in waited.headers

    def test_to_a_server_that_can_not_wait_is_answered_at_once_with_when_to_come_again(
        self, world: World, source: FakeSource
    ) -> None:
        agent, seq = polling(world)
        answer = agent.get(f"deployment?wait=20&after={seq}")
        assert (answer.status_code, answer.headers["Retry-After"]) == (204, "10")

    @pytest.mark.parametrize(
        "query", ["wait=31", "wait=x", "wait=-1", "wait=1.5", "after=x", "after=-1", "wait=1&wait=1", "wait="]
    )
    def test_with_a_bad_parameter_is_400(self, world: World, source: FakeSource, query: str) -> None:
        assert world.enroll().get(f"deployment?{query}").status_code == 400

    @pytest.mark.postgres
    @pytest.mark.django_db(transaction=True)
    def test_ends_promptly_when_what_is_wanted_changes(self, world: World, source: FakeSource, server: Served) -> None:
        agent, seq = polling(world)
        poll = server.begin("GET", f"{agent.path}/deployment?wait=20&after={seq}", agent.token)
        server.until_waiting(1)
        source.wanted = activate()
        changed = time.monotonic()
        world.in_transaction(lambda: services.announce([uuid.UUID(agent.id)]), write=True)
        answer = poll.result(20)
        assert answer.status == 200
        assert answer.json()["desired"]["directive"]["directive"] == "activate"
        assert time.monotonic() - changed < 15

    @pytest.mark.postgres
    @pytest.mark.django_db(transaction=True)
    def test_ends_promptly_when_another_process_announces(
        self, world: World, source: FakeSource, server: Served
    ) -> None:
        agent, seq = polling(world)
        with world.other_process(
            "from django.db import transaction\n"
            "from apps.agents import services\n"
            "from apps.agents.registry import Desired\n"
            "with transaction.atomic():\n"
            f"    services.note_assigned(['{agent.id}'], Desired(), sequence=5)\n"
            f"    services.announce(['{agent.id}'])\n"
        ):
            poll = server.begin("GET", f"{agent.path}/deployment?wait=20&after={seq}", agent.token)
            server.until_waiting(1)
            source.wanted = activate()
            start = time.monotonic()
        assert poll.result(20).status == 200
        assert time.monotonic() - start < 15
        assert Agent.objects.get().highest_assigned_sequence == 5

    @pytest.mark.postgres
    @pytest.mark.django_db(transaction=True)
    def test_ends_with_401_when_the_key_ends(self, world: World, source: FakeSource, server: Served) -> None:
        agent, seq = polling(world)
        poll = server.begin("GET", f"{agent.path}/deployment?wait=20&after={seq}", agent.token)
        server.until_waiting(1)
        start = time.monotonic()
        assert world.bob.post(f"{world.env}/agents/{agent.id}/revoke-key", {}).status_code == 200
        assert poll.result(20).status == 401
        assert time.monotonic() - start < 15

    @pytest.mark.postgres
    @pytest.mark.django_db(transaction=True)
    def test_woken_together_are_answered_as_the_view_answers_without_it(
        self, world: World, source: FakeSource, server: Served, monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        if connection.vendor != "postgresql":
            pytest.skip(
                "on SQLite every commit wakes every poll, so one can be looked at before its directive has a number"
            )
        agents = [polling(world) for _ in range(3)]
        # the listener's first notification, of all channels, has passed before any of them waits
        server.until(lambda: wake.delivered_within(1))
        polls = [server.begin("GET", poll_path(agent, seq), agent.token) for agent, seq in agents]
        server.until_waiting(3)
        monkeypatch.setattr(DeploymentView, "get", refuse_to_be_called)
        source.wanted = activate()
        caplog.clear()
        number_for_all(world, source.wanted, [agent for agent, _ in agents])
        answers = [poll.result(20) for poll in polls]
        monkeypatch.undo()
        for (agent, seq), answer in zip(agents, answers, strict=True):
            assert answer.status == 200
            directive = opened(world, agent, answer.json())
            assert (directive.directive, directive.sequence) == ("activate", 5)
            assert directive.directive_seq > seq
            at_once = server.call("GET", poll_path(agent, seq), agent.token)
            assert set(answer.headers) == set(at_once.headers)
            changing = {"x-request-id", "content-length", "x-ratelimit-remaining", "x-ratelimit-reset"}
            same = set(answer.headers) - changing
            assert {name: answer.headers[name] for name in same} == {name: at_once.headers[name] for name in same}
            assert answer.json().keys() == at_once.json().keys()
            assert answer.json()["url"] == at_once.json()["url"]
            assert int(answer.headers["content-length"]) == len(answer.body)
        written = {line.msg["request_id"]: line.msg for line in caplog.records if line.msg.get("event") == "request"}
        for answer in answers:
            line = written[answer.headers["x-request-id"]]
            assert (line["status"], line["route"]) == (200, "api/v1/agents/<uuid:agent_id>/deployment")
            assert line["principal"].startswith("agent:")

    @pytest.mark.postgres
    @pytest.mark.django_db(transaction=True)
    def test_continues_to_wait_after_a_spurious_notification(
        self, world: World, source: FakeSource, server: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        agent, seq = polling(world)
        poll = server.begin("GET", poll_path(agent, seq), agent.token)
        server.until_waiting(1)
        looked = threading.Event()
        look = agent_waiting._numbered

        def noticed(keys: Any) -> Any:
            yield from look(keys)
            looked.set()

        with monkeypatch.context() as patch:
            patch.setattr(DeploymentView, "get", refuse_to_be_called)
            patch.setattr(agent_waiting, "_numbered", noticed)
            world.in_transaction(lambda: services.announce([uuid.UUID(agent.id)]), write=True)
            assert looked.wait(20)
        assert server.front.waiting == 1
        number_for_all(world, activate(), [agent])
        source.wanted = activate()
        world.in_transaction(lambda: services.announce([uuid.UUID(agent.id)]), write=True)
        assert poll.result(20).status == 200

    @pytest.mark.django_db(transaction=True)
    def test_is_answered_by_its_view_when_looking_at_many_fails(
        self, world: World, source: FakeSource, server: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(keys: Any) -> Any:
            raise DatabaseError("no such table")

        monkeypatch.setattr(agent_waiting, "_numbered", fail)
        agent, seq = polling(world)
        poll = server.begin("GET", poll_path(agent, seq), agent.token)
        server.until_waiting(1)
        source.wanted = activate()
        number_for_all(world, source.wanted, [agent])
        assert poll.result(20).json()["desired"]["directive"]["directive"] == "activate"

    @pytest.mark.django_db(transaction=True)
    def test_that_ends_without_news_is_in_the_log(
        self, world: World, source: FakeSource, server: Served, caplog: Any
    ) -> None:
        agent, seq = polling(world)
        answer = server.call("GET", f"{agent.path}/deployment?wait=1&after={seq}", agent.token)
        lines = [line.msg for line in caplog.records if isinstance(line.msg, dict)]
        line = next(line for line in lines if line.get("request_id") == answer.headers["x-request-id"])
        assert (line["event"], line["status"]) == ("request", 204)
        assert line["ms"] >= 900

    @pytest.mark.django_db(transaction=True)
    def test_a_change_between_the_look_and_the_wait_is_not_missed(
        self, world: World, source: FakeSource, server: Served
    ) -> None:
        agent, seq = polling(world)
        look = source.desired
        changes = iter([activate()])

        def desired(asking: Agent) -> Desired:
            seen = look(asking)
            # committed and notified after this read, before the wait
            if (wanted := next(changes, None)) is not None:
                source.wanted = wanted
                world.in_transaction(lambda: services.announce([uuid.UUID(agent.id)]), write=True)
            return seen

        source.desired = desired  # type: ignore[method-assign]
        start = time.monotonic()
        answer = server.call("GET", f"{agent.path}/deployment?wait=20&after={seq}", agent.token)
        assert answer.status == 200
        assert time.monotonic() - start < 15

    @pytest.mark.django_db(transaction=True)
    def test_a_third_poll_of_an_agent_is_sent_away_and_hundreds_of_other_agents_are_not(
        self, world: World, source: FakeSource, server: Served
    ) -> None:
        agent, seq = polling(world)
        other, other_seq = polling(world)
        path = f"{agent.path}/deployment?wait=20&after={seq}"
        polls = [server.begin("GET", path, agent.token) for _ in range(2)]
        server.until_waiting(2)
        third = server.call("GET", path, agent.token)
        assert (third.status, third.headers["retry-after"]) == (204, "10")
        polls.append(server.begin("GET", f"{other.path}/deployment?wait=20&after={other_seq}", other.token))
        server.until_waiting(3)
        server.stop()
        assert [poll.result().status for poll in polls] == [204] * 3

    @pytest.mark.django_db(transaction=True)
    def test_beyond_the_bound_of_the_process_is_sent_away(self, world: World, source: FakeSource) -> None:
        with serving(Limits(waits=1)) as server:
            (first, seq), (second, other_seq) = polling(world), polling(world)
            poll = server.begin("GET", f"{first.path}/deployment?wait=20&after={seq}", first.token)
            server.until_waiting(1)
            away = server.call("GET", f"{second.path}/deployment?wait=20&after={other_seq}", second.token)
            assert (away.status, away.headers["retry-after"]) == (204, "10")
            server.stop()
            assert poll.result().status == 204

    @pytest.mark.django_db(transaction=True)
    def test_ends_at_once_at_shutdown(self, world: World, source: FakeSource, server: Served) -> None:
        agent, seq = polling(world)
        path = f"{agent.path}/deployment?wait=20&after={seq}"
        poll = server.begin("GET", path, agent.token)
        server.until_waiting(1)
        start = time.monotonic()
        server.stop()
        assert poll.result(20).status == 204
        assert server.call("GET", path, agent.token).status == 204
        assert time.monotonic() - start < 15

    @pytest.mark.django_db(transaction=True)
    def test_of_a_disconnected_client_is_dropped(self, world: World, source: FakeSource, server: Served) -> None:
        agent, seq = polling(world)
        poll = server.begin("GET", f"{agent.path}/deployment?wait=20&after={seq}", agent.token)
        server.until_waiting(1)
        poll.hang_up()
        server.until_waiting(0)
        assert poll.result().status == 0


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_two_heartbeats_at_once_agree_on_the_number_of_a_new_directive(world: World, source: FakeSource) -> None:
    agent = world.enroll()
    agent.beat()
    source.wanted = activate()
    gate, answers = threading.Barrier(6), []

    def beat() -> None:
        gate.wait()
        answers.append(agent.beat())

    world.at_once([beat] * 6)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["desired"]["directive"]["directive_seq"] for answer in answers}) == 1
