"""Getting in: enrollment tokens and the one POST they open."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import pytest
import time_machine

from apps.agents.models import Agent, AgentKey, EnrollmentToken
from apps.audit.models import AuditEvent
from apps.core import clock
from apps.jobs.registry import chores
from apps.tenancy import services as tenancy
from apps.tenancy.selectors import scope_of

from .conftest import SYSTEM, World

pytestmark = pytest.mark.django_db


def test_an_operator_creates_a_token_and_sees_its_text_once(world: World) -> None:
    made = world.bob.post(f"{world.env}/enrollment-tokens", {"name": "rack 7", "labels": {"zone": "a"}})
    assert made.status_code == 201
    body = made.json()
    assert body["token"].startswith("byt_enr_")
    assert body["max_uses"] == 1
    assert body["uses"] == 0
    assert body["labels"] == {"zone": "a"}
    listed = world.vera.get(f"{world.env}/enrollment-tokens").json()["results"]
    assert [item["id"] for item in listed] == [body["id"]]
    one = world.vera.get(f"{world.env}/enrollment-tokens/{body['id']}")
    assert "token" not in listed[0]
    assert "token" not in one.json()
    assert body["token"] not in str(AuditEvent.objects.values_list("details", flat=True))
    assert EnrollmentToken.objects.get().sha256 not in body["token"]


def test_a_token_is_valid_for_an_hour_by_default_and_at_most_seven_days(world: World) -> None:
    made = world.bob.post(f"{world.env}/enrollment-tokens", {}).json()
    expires = dt.datetime.fromisoformat(made["expires_at"])
    assert dt.timedelta(minutes=59) < expires - clock.now() <= dt.timedelta(hours=1)
    assert world.bob.post(f"{world.env}/enrollment-tokens", {"expires_in_seconds": 7 * 86400}).status_code == 201
    for seconds in (0, -1, 7 * 86400 + 1, "60", 1.5, True, None):
        refused = world.bob.post(f"{world.env}/enrollment-tokens", {"expires_in_seconds": seconds})
        assert refused.status_code == 400, seconds
        assert refused.json()["errors"][0]["pointer"] == "/expires_in_seconds"


@pytest.mark.parametrize(
    "body",
    [
        {"max_uses": 0},
        {"max_uses": 1001},
        {"labels": {"a": 1}},
        {"labels": []},
        {"labels": {"": "x"}},
        {"name": "x" * 101},
        {"name": 7},
        {"colour": "red"},
        [],
    ],
)
def test_a_token_asked_for_wrongly_is_refused_in_a_problem_document(world: World, body: Any) -> None:
    answer = world.bob.post(f"{world.env}/enrollment-tokens", body)
    assert answer.status_code == 400
    assert answer["Content-Type"].startswith("application/problem+json")
    assert not EnrollmentToken.objects.exists()


def test_a_viewer_creates_no_token_and_an_outsider_sees_no_environment(world: World) -> None:
    assert world.vera.post(f"{world.env}/enrollment-tokens", {}).status_code == 403
    assert world.charlie.post(f"{world.env}/enrollment-tokens", {}).status_code == 404
    assert world.charlie.get(f"{world.env}/enrollment-tokens").status_code == 404
    assert world.anonymous.post(f"{world.env}/enrollment-tokens", {}).status_code == 401
    made = world.bob.post(f"{world.env}/enrollment-tokens", {}).json()
    for where in (world.other_env, world.foreign_env):
        assert world.bob.delete(f"{where}/enrollment-tokens/{made['id']}").status_code == 404
    assert world.vera.delete(f"{world.env}/enrollment-tokens/{made['id']}").status_code == 403


def test_a_deleted_token_enrolls_no_agent(world: World) -> None:
    made = world.bob.post(f"{world.env}/enrollment-tokens", {}).json()
    where = f"{world.env}/enrollment-tokens/{made['id']}"
    assert world.bob.delete(where).status_code == 204
    assert world.bob.delete(where).status_code == 404
    assert world.bob.get(where).status_code == 404
    recorded = AuditEvent.objects.filter(target=f"enrollment_token:{made['id']}").order_by("seq")
    assert [(e.action, e.actor_name) for e in recorded] == [
        ("enrollment_token.created", "bob@example.com"),
        ("enrollment_token.deleted", "bob@example.com"),
    ]
    refused = world.holder(made["token"]).post(f"{world.env}/agents", {})
    assert (refused.status_code, refused.json()["code"]) == (401, "invalid_token")


def test_a_host_enrolls_and_gets_everything_it_needs(world: World) -> None:
    token = world.token(labels={"zone": "a"})
    answer = world.holder(token).post(
        f"{world.env}/agents", {"hostname": "Web-1.example.com", "labels": {"zone": "z"}, "version": "1.2.3"}
    )
    assert answer.status_code == 201
    body = answer.json()
    assert body["api_key"].startswith("byt_agt_")
    assert body["environment_id"] in world.env
    assert body["project_id"] in world.env
    assert body["org_id"] in world.env
    assert body["posture"] == "dev"
    assert body["heartbeat_seconds"] == 10
    assert body["signing_keys"]["version"] >= 1
    assert body["signing_keys"]["keys"]
    assert body["signing_keys"]["envelopes"]
    shown = world.vera.get(f"{world.env}/agents/{body['agent_id']}").json()
    assert shown["name"] == "web-1"
    assert shown["labels"] == {"zone": "a"}
    assert shown["reported_labels"] == {"zone": "z"}
    assert shown["status"] == "offline"
    assert shown["running"] is None
    assert shown["last_seen_at"] is None
    assert shown["version"] == "1.2.3"
    assert body["api_key"] not in str(shown)
    assert AuditEvent.objects.filter(action="agent.enrolled", target=f"agent:{body['agent_id']}").count() == 1


def test_a_derived_name_is_made_unique_and_a_given_one_must_be_free(world: World) -> None:
    holder = world.holder(world.token(max_uses=10))
    names = [
        holder.post(f"{world.env}/agents", body).json()["name"]
        for body in (
            {"hostname": "db.local"},
            {"hostname": "db.local"},
            {"hostname": "db"},
            {},
            {"hostname": "ÄÖ"},
        )
    ]
    assert names == ["db", "db-2", "db-3", "agent", "agent-2"]
    taken = holder.post(f"{world.env}/agents", {"name": "db"})
    assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")
    assert EnrollmentToken.objects.get().uses == 5
    assert holder.post(f"{world.env}/agents", {"name": "db-9"}).status_code == 201


def test_a_used_token_and_an_expired_one_have_different_codes(world: World) -> None:
    token = world.token()
    assert world.holder(token).post(f"{world.env}/agents", {}).status_code == 201
    used = world.holder(token).post(f"{world.env}/agents", {})
    assert (used.status_code, used.json()["code"]) == (401, "token_used")
    late = world.token()
    with time_machine.travel(clock.now() + dt.timedelta(hours=1, seconds=1), tick=True):
        expired = world.holder(late).post(f"{world.env}/agents", {})
    assert (expired.status_code, expired.json()["code"]) == (401, "token_expired")
    denied = AuditEvent.objects.filter(action="agent.enroll", outcome="denied").order_by("seq")
    assert [event.details["reason"] for event in denied] == ["token_used", "token_expired"]
    assert Agent.objects.count() == 1


def test_only_an_enrollment_token_enrolls(world: World) -> None:
    agent = world.enroll()
    for text, code in (
        (world.alice.token, "wrong_credential"),
        (agent.token, "wrong_credential"),
        (world.token()[:-1] + "!", "malformed_token"),
        ("byt_enr_" + "A" * 49, "malformed_token"),
        ("hello", "malformed_token"),
        (world.unknown("enr"), "invalid_token"),
    ):
        refused = world.holder(text).post(f"{world.env}/agents", {})
        assert (refused.status_code, refused.json()["code"]) == (401, code)
        assert "WWW-Authenticate" in refused
    assert world.anonymous.post(f"{world.env}/agents", {}).status_code == 401
    assert world.signed_in("alice").post(f"{world.env}/agents", {}).json()["code"] == "wrong_credential"


def test_an_enrollment_token_opens_nothing_else(world: World) -> None:
    holder = world.holder(world.token())
    agent = world.enroll()
    for answer in (
        holder.get(f"{world.env}/agents"),
        holder.get(world.env),
        holder.post(f"/api/v1/agents/{agent.id}/heartbeat", {}),
        holder.get("/api/v1/me"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (401, "wrong_credential")


def test_a_token_of_one_environment_finds_no_other(world: World) -> None:
    token = world.token()
    for where in (world.other_env, world.foreign_env, world.env.replace("/projects/", "/projects/0", 1)):
        assert world.holder(token).post(f"{where}/agents", {}).status_code == 404
    assert world.holder(token).post(f"{world.env}/agents", {}).status_code == 201


def test_a_token_ends_with_its_environment(world: World) -> None:
    token = world.token()
    tenancy.delete_node(actor=SYSTEM, scope=scope_of(world.environment), force=True)
    refused = world.holder(token).post(f"{world.env}/agents", {})
    assert (refused.status_code, refused.json()["code"]) == (401, "invalid_token")


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""},
        {"name": 5},
        {"name": "x" * 101},
        {"name": "a\nb"},
        {"hostname": "h" * 254},
        {"labels": {"a": None}},
        {"labels": {str(i): "x" for i in range(65)}},
        {"version": "v" * 65},
        "text",
    ],
)
def test_an_enrollment_of_a_wrong_shape_uses_nothing(world: World, body: Any) -> None:
    refused = world.holder(world.token()).post(f"{world.env}/agents", body)
    assert refused.status_code == 400
    assert EnrollmentToken.objects.get().uses == 0


@pytest.mark.parametrize("raw", [b'{"name": "a\\u0000"}', b"{", b'{"name":"a","name":"b"}', b"\xff", b"[" * 100])
def test_a_malformed_enrollment_is_400(world: World, raw: bytes) -> None:
    assert world.holder(world.token()).raw("POST", f"{world.env}/agents", raw).status_code == 400


def test_a_huge_enrollment_is_413_before_anything_is_looked_at(world: World) -> None:
    body = b'{"name": "' + b"x" * (5 * 1024 * 1024) + b'"}'
    assert world.anonymous.raw("POST", f"{world.env}/agents", body).status_code == 413


class TestTheSameRequestAgain:
    """A lost answer: the same token and Idempotency-Key within ten minutes, before the first heartbeat."""

    def test_gives_the_same_agent_and_a_fresh_key(self, world: World) -> None:
        holder = world.holder(world.token())
        first = holder.post(f"{world.env}/agents", {"hostname": "h"}, idempotency_key="k1").json()
        again = holder.post(f"{world.env}/agents", {"hostname": "h"}, idempotency_key="k1")
        assert again.status_code == 201
        assert again.json()["agent_id"] == first["agent_id"]
        assert again.json()["api_key"] != first["api_key"]
        assert Agent.objects.count() == 1
        assert EnrollmentToken.objects.get().uses == 1
        assert world.beat(first["agent_id"], first["api_key"]).status_code == 401
        assert world.beat(first["agent_id"], again.json()["api_key"]).status_code == 200

    def test_is_a_used_token_with_another_key_or_none(self, world: World) -> None:
        holder = world.holder(world.token())
        holder.post(f"{world.env}/agents", {}, idempotency_key="k1")
        assert holder.post(f"{world.env}/agents", {}, idempotency_key="k2").json()["code"] == "token_used"
        assert holder.post(f"{world.env}/agents", {}).json()["code"] == "token_used"

    def test_is_a_used_token_once_the_agent_lives(self, world: World) -> None:
        holder = world.holder(world.token())
        first = holder.post(f"{world.env}/agents", {}, idempotency_key="k1").json()
        assert world.beat(first["agent_id"], first["api_key"]).status_code == 200
        assert holder.post(f"{world.env}/agents", {}, idempotency_key="k1").json()["code"] == "token_used"
        assert world.beat(first["agent_id"], first["api_key"]).status_code == 200

    def test_is_a_used_token_after_ten_minutes(self, world: World) -> None:
        holder = world.holder(world.token())
        holder.post(f"{world.env}/agents", {}, idempotency_key="k1")
        with time_machine.travel(clock.now() + dt.timedelta(minutes=10, seconds=1), tick=True):
            assert holder.post(f"{world.env}/agents", {}, idempotency_key="k1").json()["code"] == "token_used"

    @pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9"])
    def test_needs_a_printable_key(self, world: World, key: str) -> None:
        refused = world.holder(world.token()).post(f"{world.env}/agents", {}, idempotency_key=key)
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_idempotency_key")


def test_more_than_twenty_bad_tokens_a_minute_are_429_and_lock_no_other_address_out(world: World) -> None:
    stranger = world.holder(world.unknown("enr"))
    with time_machine.travel(clock.now(), tick=False):
        codes = [stranger.post(f"{world.env}/agents", {}).status_code for _ in range(21)]
        refused = stranger.post(f"{world.env}/agents", {})
    assert codes == [401] * 20 + [429]
    assert refused.json()["code"] == "rate_limited"
    assert 1 <= int(refused["Retry-After"]) <= 60
    assert world.holder(world.token()).post(f"{world.env}/agents", {}).status_code == 201


def test_more_than_twenty_enrollments_a_minute_in_one_environment_are_429(world: World) -> None:
    holder = world.holder(world.token(max_uses=100))
    with time_machine.travel(clock.now(), tick=False):
        codes = [holder.post(f"{world.env}/agents", {}).status_code for _ in range(21)]
    assert codes == [201] * 20 + [429]
    assert Agent.objects.count() == 20


@pytest.mark.postgres
def test_an_environment_with_a_limit_of_its_own_lets_as_many_hosts_enroll_and_no_other_does(world: World) -> None:
    assert world.alice.patch(world.env, {"enrollments_per_minute": 25}).status_code == 200
    hosts = [(world.holder(world.token(max_uses=100)), world.env)]
    hosts.append((world.holder(world.token(foreign=True, max_uses=100)), world.foreign_env))
    with time_machine.travel(clock.now(), tick=False):
        codes = [[holder.post(f"{env}/agents", {}).status_code for _ in range(26)] for holder, env in hosts]
    assert codes == [[201] * 25 + [429], [201] * 20 + [429] * 6]


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
class TestAtTheSameMoment:
    """Many hosts with one token, really at once."""

    def _race(self, world: World, token: str, bodies: list[tuple[dict[str, Any], str | None]]) -> list[Any]:
        gate = threading.Barrier(len(bodies))
        answers: list[Any] = []

        def attempt(body: dict[str, Any], key: str | None) -> None:
            gate.wait()
            answers.append(world.holder(token).post(f"{world.env}/agents", body, idempotency_key=key))

        world.at_once([lambda body=body, key=key: attempt(body, key) for body, key in bodies])
        return answers

    def test_a_single_use_token_enrolls_exactly_one(self, world: World) -> None:
        answers = self._race(world, world.token(), [({}, None)] * 10)
        assert sorted(answer.status_code for answer in answers) == [201] + [401] * 9
        assert {a.json()["code"] for a in answers if a.status_code == 401} == {"token_used"}
        assert Agent.objects.count() == 1
        assert AgentKey.objects.count() == 1

    def test_a_token_for_three_enrolls_exactly_three_under_three_names(self, world: World) -> None:
        answers = self._race(world, world.token(max_uses=3), [({"hostname": "h"}, None)] * 8)
        assert sorted(answer.status_code for answer in answers) == [201] * 3 + [401] * 5
        assert set(Agent.objects.values_list("name", flat=True)) == {"h", "h-2", "h-3"}

    def test_exactly_one_of_concurrent_enrollments_gets_the_name(self, world: World) -> None:
        answers = self._race(world, world.token(max_uses=9), [({"name": "n"}, None)] * 6)
        assert sorted(answer.status_code for answer in answers) == [201] + [409] * 5
        assert EnrollmentToken.objects.get().uses == 1

    def test_a_repeated_request_creates_one_agent_with_one_working_key(self, world: World) -> None:
        answers = self._race(world, world.token(), [({}, "k")] * 4)
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.json()["agent_id"] for answer in answers}) == 1
        assert AgentKey.objects.filter(revoked_at__isnull=True).count() == 1


@pytest.mark.postgres
def test_a_token_is_deleted_thirty_days_after_it_was_revoked_or_expired(world: World) -> None:
    now, day = clock.now(), dt.timedelta(days=1)
    made = {
        "good": (day, None),
        "expired lately": (-29 * day, None),
        "expired long ago": (-31 * day, None),
        "revoked lately": (day, -29 * day),
        "revoked long ago": (day, -31 * day),
    }
    for name, (expires, revoked) in made.items():
        EnrollmentToken.objects.create(
            environment=world.environment,
            name=name,
            sha256=name,
            public_id=name,
            expires_at=now + expires,
            revoked_at=now + revoked if revoked is not None else None,
        )
    [chore] = [spec for spec in chores() if spec.name == "ended_enrollment_tokens"]
    assert chore.run(now) == 2
    assert set(EnrollmentToken.objects.values_list("name", flat=True)) == {"good", "expired lately", "revoked lately"}
