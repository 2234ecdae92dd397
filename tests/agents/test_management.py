"""What people do with agents: look, rename, label, revoke, remove."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from apps.agents import selectors
from apps.agents.models import Agent, AgentKey
from apps.audit.models import AuditEvent
from apps.tenancy.selectors import scope_of

from .conftest import FakeSource, World

pytestmark = pytest.mark.django_db


def test_the_list_holds_this_environments_agents_newest_first(world: World) -> None:
    first, second = world.enroll(), world.enroll()
    world.enroll(foreign=True)
    body = world.vera.get(f"{world.env}/agents").json()
    assert [item["id"] for item in body["results"]] == [second.id, first.id]
    assert body["next"] is None
    page = world.vera.get(f"{world.env}/agents?limit=1").json()
    assert page["next"]
    assert len(page["results"]) == 1
    assert world.vera.get(f"{world.other_env}/agents").json()["results"] == []
    assert world.charlie.get(f"{world.env}/agents").status_code == 404


@pytest.mark.parametrize("query", ["status=asleep", "colour=red", "cursor=zz", "limit=0", "q=" + "x" * 201])
def test_a_filter_that_is_not_known_is_400(world: World, query: str) -> None:
    assert world.vera.get(f"{world.env}/agents?{query}").status_code == 400


def test_searching_by_name(world: World) -> None:
    agent = world.enroll(name="edge-berlin")
    world.enroll(name="edge-paris")
    found = world.vera.get(f"{world.env}/agents?q=BERLIN").json()["results"]
    assert [item["id"] for item in found] == [agent.id]


def test_an_agent_is_found_only_where_it_is(world: World) -> None:
    agent = world.enroll()
    assert world.vera.get(f"{world.env}/agents/{agent.id}").status_code == 200
    for client, where in (
        (world.bob, world.other_env),
        (world.charlie, world.env),
        (world.charlie, world.foreign_env),
        (world.bob, world.foreign_env),
    ):
        for method in ("GET", "PATCH", "DELETE"):
            answer = client.call(method, f"{where}/agents/{agent.id}", {} if method == "PATCH" else None)
            assert answer.status_code == 404, (where, method)
        assert client.post(f"{where}/agents/{agent.id}/revoke-key", {}).status_code == 404


def test_a_viewer_reads_but_changes_nothing(world: World) -> None:
    agent = world.enroll()
    where = f"{world.env}/agents/{agent.id}"
    assert world.vera.patch(where, {"name": "x"}).status_code == 403
    assert world.vera.delete(where).status_code == 403
    assert world.vera.post(f"{where}/revoke-key", {}).status_code == 403
    assert Agent.objects.filter(revoked_at__isnull=True).count() == 1


class TestPatch:
    """A merge patch of name and labels."""

    def test_changes_what_is_named_and_merges_labels(self, world: World) -> None:
        agent = world.enroll(labels={"zone": "a", "tier": "web"})
        where = f"{world.env}/agents/{agent.id}"
        answer = world.bob.patch(where, {"name": "renamed", "labels": {"zone": "b", "tier": None, "rack": "7"}})
        assert answer.status_code == 200
        assert answer.json()["name"] == "renamed"
        assert answer.json()["labels"] == {"zone": "b", "rack": "7"}
        assert world.bob.patch(where, {"labels": None}).json()["labels"] == {}
        assert AuditEvent.objects.filter(action="agent.updated").count() == 2
        assert world.bob.patch(where, {}).status_code == 200
        assert AuditEvent.objects.filter(action="agent.updated").count() == 2

    def test_merge_patch_bodies_are_taken_too(self, world: World) -> None:
        agent = world.enroll()
        answer = world.bob.raw(
            "PATCH",
            f"{world.env}/agents/{agent.id}",
            b'{"labels": {"a": "1"}}',
            content_type="application/merge-patch+json",
        )
        assert answer.status_code == 200
        assert answer.json()["labels"] == {"a": "1"}

    def test_a_name_that_is_taken_is_409(self, world: World) -> None:
        world.enroll(name="one")
        two = world.enroll(name="two")
        answer = world.bob.patch(f"{world.env}/agents/{two.id}", {"name": "one"})
        assert (answer.status_code, answer.json()["code"]) == (409, "name_taken")

    @pytest.mark.parametrize(
        "body",
        [
            {"name": None},
            {"name": ""},
            {"name": 3},
            {"name": "x" * 101},
            {"labels": {"a": 1}},
            {"labels": "a=b"},
            {"labels": {str(i): "x" for i in range(65)}},
            {"status": "online"},
            {"version": "2"},
            [],
        ],
    )
    def test_a_wrong_shape_is_400(self, world: World, body: Any) -> None:
        agent = world.enroll()
        assert world.bob.patch(f"{world.env}/agents/{agent.id}", body).status_code == 400

    def test_labels_stay_few_also_over_many_patches(self, world: World) -> None:
        where = f"{world.env}/agents/{world.enroll().id}"
        assert world.bob.patch(where, {"labels": {f"a{i}": "x" for i in range(40)}}).status_code == 200
        assert world.bob.patch(where, {"labels": {f"b{i}": "x" for i in range(40)}}).status_code == 400

    def test_a_lost_edit_is_refused_but_a_heartbeat_in_between_is_none(self, world: World, source: FakeSource) -> None:
        agent = world.enroll()
        where = f"{world.env}/agents/{agent.id}"
        read = world.bob.get(where)
        tag = read["ETag"]
        assert world.bob.call("GET", where, None, if_none_match=tag).status_code == 304
        agent.beat()
        assert world.bob.call("GET", where, None, if_none_match=tag).status_code == 200
        assert world.bob.patch(where, {"name": "first"}, if_match=tag).status_code == 200
        assert world.bob.patch(where, {"name": "second"}, if_match=tag).status_code == 412
        assert world.bob.call("DELETE", where, None, if_match=tag).status_code == 412


class TestRevokingAndRemoving:
    """An end at once; a target in flight only by force."""

    def test_a_removed_agent_is_not_found_and_its_name_is_free(self, world: World, source: FakeSource) -> None:
        agent = world.enroll(name="web")
        where = f"{world.env}/agents/{agent.id}"
        assert world.bob.delete(where).status_code == 204
        assert world.bob.delete(where).status_code == 404
        assert agent.beat().status_code == 401
        assert not AgentKey.objects.exists()
        assert source.removed == [uuid.UUID(agent.id)]
        assert world.enroll(name="web").id != agent.id
        assert AuditEvent.objects.filter(action="agent.removed").count() == 1

    def test_a_revoked_agent_stays_on_the_list_but_is_deployed_to_no_more(
        self, world: World, source: FakeSource
    ) -> None:
        agent = world.enroll()
        where = f"{world.env}/agents/{agent.id}"
        answer = world.bob.post(f"{where}/revoke-key", {})
        assert answer.status_code == 200
        assert answer.json()["revoked_at"]
        assert answer.json()["status"] == "offline"
        refused = agent.beat()
        assert (refused.status_code, refused.json()["code"]) == (401, "invalid_token")
        assert world.bob.post(f"{where}/revoke-key", {}).json() == answer.json()
        assert source.removed == [uuid.UUID(agent.id)]
        assert world.vera.get(where).status_code == 200
        assert not selectors.in_environment(scope_of(world.environment)).exists()
        assert AuditEvent.objects.filter(action="agent.key_revoked").count() == 1

    @pytest.mark.parametrize("action", ["delete", "revoke"])
    def test_an_agent_in_flight_is_removed_by_force_only(self, world: World, source: FakeSource, action: str) -> None:
        agent = world.enroll()
        source.blockers = ["deployment 7 is deploying here"]
        where = f"{world.env}/agents/{agent.id}"

        def attempt(query: str) -> Any:
            if action == "delete":
                return world.bob.delete(f"{where}{query}")
            return world.bob.post(f"{where}/revoke-key{query}", {})

        refused = attempt("")
        assert (refused.status_code, refused.json()["code"]) == (409, "agent_in_flight")
        assert refused.json()["blockers"] == source.blockers
        assert attempt("?force=yes").status_code == 400
        assert attempt("?farce=true").status_code == 400
        assert agent.beat().status_code == 200
        assert source.removed == []
        assert attempt("?force=true").status_code == (204 if action == "delete" else 200)
        assert source.removed == [uuid.UUID(agent.id)]
        assert agent.beat().status_code == 401
        recorded = AuditEvent.objects.get(action__in=("agent.removed", "agent.key_revoked"), outcome="allowed")
        assert recorded.details["forced"] is True


def test_deploying_by_labels_sees_what_operators_gave_and_not_what_hosts_claim(world: World) -> None:
    chosen = world.enroll(labels={"zone": "a", "tier": "web"})
    world.enroll(labels={"zone": "b"}, reported={"zone": "a", "tier": "web"})
    scope = scope_of(world.environment)
    found = selectors.by_labels(scope, {"zone": "a"})
    assert [str(agent.pk) for agent in found] == [chosen.id]
    assert len(selectors.by_labels(scope, {})) == 2


def test_the_cost_of_the_list_does_not_grow_with_it(world: World, django_assert_max_num_queries: Any) -> None:
    for _ in range(6):
        world.enroll()
    with django_assert_max_num_queries(10):
        world.vera.get(f"{world.env}/agents")
