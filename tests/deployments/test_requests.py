"""Asking for a deployment, and config bundles: what is taken, what is refused and how."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from apps.audit.models import AuditEvent
from apps.core.ids import new_id
from apps.deployments.models import ConfigBundle, Deployment, Target
from apps.deployments.services import bundles
from apps.pipelines.models import PipelineVersion
from tests.deployments.world import World
from tests.support import Caller

pytestmark = pytest.mark.django_db

SPARE = str(uuid.UUID(int=1))


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


class TestBundles:
    """A version and its configuration."""

    def test_answers_the_bundle_with_its_hash(self, world: World) -> None:
        version = world.version()
        config = {"stages": {"redact": {"rules": ["email:drop"]}}, "tuning": {"profile": "default"}}
        answer = world.bob.post(f"{world.path}/bundles", {"version_id": version, "config": config})
        assert answer.status_code == 201
        body = answer.json()
        assert body["version_id"] == version
        assert body["config"] == config
        assert body["config_hash"].startswith("sha256:")
        assert len(body["config_hash"]) == 71
        assert world.bob.get(f"{world.path}/bundles/{body['id']}").json() == body
        assert AuditEvent.objects.filter(action="bundle.created", target=f"bundle:{body['id']}").count() == 1

    def test_is_compiled_and_checked_before_the_environment_is_locked(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        version, done = world.version(), []
        for module, name in (
            (bundles, "compile_spec"),
            (bundles.runtime_config, "check_config"),
            (bundles, "lock_environment"),
        ):
            original = getattr(module, name)
            monkeypatch.setattr(
                module, name, lambda *given, name=name, original=original: (done.append(name), original(*given))[1]
            )
        config = {"stages": {"redact": {"rules": ["email:drop"]}}}
        assert world.bob.post(f"{world.path}/bundles", {"version_id": version, "config": config}).status_code == 201
        assert done == ["compile_spec", "check_config", "lock_environment"]

    def test_equal_meaning_has_an_equal_hash(self, world: World) -> None:
        version = world.version()
        hashes = set()
        for config in (
            {"stages": {"redact": {"rules": ["a:drop"]}}, "tuning": {"profile": "default"}},
            {"tuning": {"profile": "default"}, "stages": {"redact": {"rules": ["a:drop"]}}},
        ):
            answer = world.bob.post(f"{world.path}/bundles", {"version_id": version, "config": config})
            hashes.add(answer.json()["config_hash"])
        assert len(hashes) == 1

    def test_all_problems_of_the_configuration_are_reported_at_once_with_pointers(self, world: World) -> None:
        body = {
            "version_id": world.version(),
            "config": {"stages": {"nobody": {"rules": ["email:drop"]}}, "speed": 9, "tuning": {"profile": "mad"}},
        }
        answer = world.bob.post(f"{world.path}/bundles", body)
        assert code(answer) == (422, "invalid_config")
        pointers = {e["pointer"] for e in answer.json()["errors"]}
        assert {"/config/speed", "/config/stages/nobody", "/config/tuning/profile"} <= pointers
        assert not ConfigBundle.objects.exists()

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"version_id": "x", "config": {}},
            {"version_id": SPARE, "config": []},
            {"version_id": SPARE, "config": {}, "extra": 1},
            {"version_id": 7, "config": {}},
            [],
            None,
        ],
    )
    def test_a_wrong_shape_is_400(self, world: World, body: Any) -> None:
        assert world.bob.post(f"{world.path}/bundles", body).status_code == 400

    def test_a_version_of_another_environment_is_unknown_here(self, world: World) -> None:
        elsewhere = world.version(at=world.tenant.path(world.tenant.staging))
        for version in (elsewhere, SPARE):
            answer = world.bob.post(f"{world.path}/bundles", {"version_id": version, "config": {}})
            assert code(answer) == (422, "unknown_version")

    def test_of_a_version_that_only_a_newer_server_understands_is_refused(self, world: World) -> None:
        row = PipelineVersion.objects.get(pk=world.version())
        row.pk, row.number, row.spec = new_id(), row.number + 1, "spec.version=99\n"
        row.spec_hash = f"sha256:{'9' * 64}"
        PipelineVersion.objects.bulk_create([row])
        answer = world.bob.post(f"{world.path}/bundles", {"version_id": str(row.pk), "config": {}})
        assert code(answer) == (422, "spec_not_understood")
        assert [e["pointer"] for e in answer.json()["errors"]] == ["/version_id"]

    def test_is_deleted_while_it_is_unused_and_never_after(self, world: World) -> None:
        unused, used = world.bundle("a:drop"), world.bundle("b:drop")
        shown = world.bob.get(f"{world.path}/bundles/{unused}").json()
        made = world.request(used)
        assert world.bob.delete(f"{world.path}/bundles/{unused}").status_code == 204
        assert world.bob.get(f"{world.path}/bundles/{unused}").status_code == 404
        event = AuditEvent.objects.get(action="bundle.deleted")
        assert (event.actor_name, event.target) == ("Bob", f"bundle:{unused}")
        assert event.details == {"version_id": shown["version_id"], "config_hash": shown["config_hash"]}
        assert code(world.bob.delete(f"{world.path}/bundles/{used}")) == (409, "bundle_in_use")
        assert world.act(made, "cancel").status_code == 200
        assert code(world.bob.delete(f"{world.path}/bundles/{used}")) == (409, "bundle_in_use")
        assert world.bob.get(f"{world.path}/bundles/{used}").json()["used_at"] is not None

    @pytest.mark.postgres
    def test_can_not_be_changed_in_the_database(self, world: World) -> None:
        world.bundle()
        for sql in (
            "UPDATE deployments_configbundle SET config = '{}'",
            "UPDATE deployments_configbundle SET config_hash = 'x'",
        ):
            with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(sql)

    def test_has_no_way_to_be_edited(self, world: World) -> None:
        bundle = world.bundle()
        for method in ("PUT", "PATCH"):
            assert world.bob.raw(method, f"{world.path}/bundles/{bundle}", b"{}").status_code == 405

    def test_the_schema_is_published_to_people(self, world: World) -> None:
        answer = world.caller("vera").get("/schemas/config-bundle")
        assert answer.status_code == 200
        assert "tuning" in json.dumps(answer.json())
        assert Caller().get("/schemas/config-bundle").status_code == 401


class TestShape:
    """What POST deployments takes."""

    def body(self, world: World, **change: Any) -> dict[str, Any]:
        base = {"bundle_id": world.bundle(), "targets": {"all": True}}
        return {**{k: v for k, v in base.items() if k not in change}, **change}

    def test_answers_what_the_contract_states(self, world: World) -> None:
        bundle = world.bundle()
        answer = world.ask(bundle, reason="because", timeout_seconds=30)
        assert answer.status_code == 201
        body = answer.json()
        assert body["bundle_id"] == bundle
        assert body["reason"] == "because"
        assert body["timeout_seconds"] == 30
        assert body["target_selector"] == {"all": True}
        assert body["strategy"] == {"type": "all_at_once", "max_failures": 0, "auto_rollback": False}
        assert body["requested_by"] == str(world.tenant.people["bob"].pk)
        assert body["sequence"] is None
        assert body["bundle_sha256"] is None
        assert body["superseded_by"] is None
        assert body["approval_id"]
        assert body["targets"]["total"] == 2
        assert set(world.targets(body["id"])) == {host.id for host in world.hosts}

    @pytest.mark.parametrize(
        "change",
        [
            {"bundle_id": None},
            {"bundle_id": "x"},
            {"targets": None},
            {"targets": {}},
            {"targets": {"all": False}},
            {"targets": {"all": 1}},
            {"targets": {"agent_ids": []}},
            {"targets": {"agent_ids": ["x"]}},
            {"targets": {"agent_ids": "x"}},
            {"targets": {"labels": {}}},
            {"targets": {"labels": {"a": 1}}},
            {"targets": {"all": True, "agent_ids": [SPARE]}},
            {"targets": {"everybody": True}},
            {"targets": []},
            {"strategy": {}},
            {"strategy": {"type": "yolo"}},
            {"strategy": {"type": "all_at_once", "phases": [{"percent": 100, "bake_seconds": 0}]}},
            {"strategy": {"type": "all_at_once", "max_failures": -1}},
            {"strategy": {"type": "all_at_once", "max_failures": "1"}},
            {"strategy": {"type": "all_at_once", "auto_rollback": "yes"}},
            {"strategy": {"type": "phased"}},
            {"strategy": {"type": "phased", "phases": []}},
            {"strategy": {"type": "phased", "phases": [{"percent": 0, "bake_seconds": 0}]}},
            {"strategy": {"type": "phased", "phases": [{"percent": 101, "bake_seconds": 0}]}},
            {"strategy": {"type": "phased", "phases": [{"percent": 50.5, "bake_seconds": 0}]}},
            {"strategy": {"type": "phased", "phases": [{"percent": True, "bake_seconds": 0}]}},
            {"strategy": {"type": "phased", "phases": [{"percent": 100, "bake_seconds": -1}]}},
            {"strategy": {"type": "phased", "phases": [{"percent": 100, "bake_seconds": "5"}]}},
            {"strategy": {"type": "phased", "phases": [{"percent": 100, "bake_seconds": 0, "name": "x"}]}},
            {"strategy": {"type": "phased", "phases": [{"bake_seconds": 0}]}},
            {"strategy": {"type": "phased", "phases": {"percent": 100}}},
            {"strategy": {"type": "phased", "phases": [{"percent": 100, "bake_seconds": 0}] * 21}},
            {"timeout_seconds": 0},
            {"timeout_seconds": 1.5},
            {"timeout_seconds": 10**9},
            {"reason": 7},
            {"reason": "x" * 2001},
            {"reason": "a\u0000b"},
            {"status": "active"},
            {"sequence": 5},
        ],
    )
    def test_a_wrong_shape_is_400_with_a_pointer(self, world: World, change: dict[str, Any]) -> None:
        answer = world.bob.post(f"{world.path}/deployments", self.body(world, **change))
        assert answer.status_code == 400, answer.content
        assert not Deployment.objects.exists()

    @pytest.mark.parametrize(
        ("targets", "pointer", "expected"),
        [
            ({}, "/targets", "one_selector"),
            ({"all": True, "labels": {"a": "b"}}, "/targets", "one_selector"),
            ({"all": False}, "/targets/all", "invalid"),
            ({"labels": {}}, "/targets/labels", "invalid"),
        ],
    )
    def test_targets_are_selected_in_exactly_one_way(
        self, world: World, targets: dict[str, Any], pointer: str, expected: str
    ) -> None:
        answer = world.bob.post(f"{world.path}/deployments", {"bundle_id": SPARE, "targets": targets})
        assert code(answer) == (400, "invalid_input")
        assert [(e["pointer"], e["code"]) for e in answer.json()["errors"]] == [(pointer, expected)]

    @pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"{", b'{"bundle_id": 1, "bundle_id": 2}', b"\xff", b"1e999"])
    def test_what_is_no_object_is_400(self, world: World, raw: bytes) -> None:
        assert world.bob.raw("POST", f"{world.path}/deployments", raw).status_code == 400

    def test_a_huge_body_is_413(self, world: World) -> None:
        raw = b'{"reason": "' + b"x" * (5 * 1024 * 1024) + b'"}'
        assert world.bob.raw("POST", f"{world.path}/deployments", raw).status_code == 413

    def test_unknown_things_are_422(self, world: World) -> None:
        assert code(world.ask(SPARE)) == (422, "unknown_bundle")
        elsewhere = world.bundle(at=world.tenant.path(world.tenant.staging))
        assert code(world.ask(elsewhere)) == (422, "unknown_bundle")
        unknown = world.ask(targets={"agent_ids": [world.hosts[0].id, SPARE]})
        assert code(unknown) == (422, "no_matching_agent")
        errors = [(e["pointer"], e["code"]) for e in unknown.json()["errors"]]
        assert errors == [("/targets/agent_ids/1", "unknown_agent")]

    def test_no_agent_at_all_is_422(self, staging: World) -> None:
        for host in staging.hosts:
            assert staging.bob.delete(f"{staging.path}/agents/{host.id}").status_code == 204
        assert code(staging.ask()) == (422, "no_matching_agent")

    def test_a_repeated_agent_counts_once_and_a_revoked_one_not_at_all(self, world: World) -> None:
        one, other = world.hosts
        made = world.request(targets={"agent_ids": [one.id, one.id]})
        assert world.show(made)["targets"]["total"] == 1
        assert world.bob.post(f"{world.path}/agents/{other.id}/revoke-key", {}).status_code == 200
        assert code(world.ask(world.bundle("x:drop"), targets=[other])) == (422, "no_matching_agent")


class TestWhoMay:
    """The matrix, per endpoint."""

    def endpoints(self, world: World, deployment: str, bundle: str) -> list[tuple[str, str, Any, bool]]:
        path = world.path
        return [
            ("GET", f"{path}/bundles", None, False),
            ("GET", f"{path}/bundles/{bundle}", None, False),
            ("POST", f"{path}/bundles", {"version_id": SPARE, "config": {}}, True),
            ("DELETE", f"{path}/bundles/{bundle}", None, True),
            ("GET", f"{path}/deployments", None, False),
            ("GET", f"{path}/deployments/{deployment}", None, False),
            ("GET", f"{path}/deployments/{deployment}/targets", None, False),
            ("GET", f"{path}/deployments/{deployment}/events", None, False),
            ("POST", f"{path}/deployments", {"bundle_id": bundle, "targets": {"all": True}}, True),
            ("POST", f"{path}/deployments/{deployment}/rollback", {}, True),
            ("POST", f"{path}/deployments/{deployment}/cancel", {}, True),
        ]

    def knock(self, caller: Caller, method: str, path: str, body: Any) -> Any:
        return caller.raw(method, path, b"" if body is None else json.dumps(body).encode())

    def test_a_viewer_reads_and_changes_nothing(self, world: World) -> None:
        bundle = world.bundle()
        made = world.request(bundle)
        for method, path, body, writes in self.endpoints(world, made, bundle):
            answer = self.knock(world.caller("vera"), method, path, body)
            assert answer.status_code == (403 if writes else 200), (method, path)
        assert world.status(made) == "approved"

    def test_another_tenant_sees_nothing(self, world: World) -> None:
        bundle = world.bundle()
        made = world.request(bundle)
        for method, path, body, _ in self.endpoints(world, made, bundle):
            answer = self.knock(world.caller("charlie"), method, path, body)
            assert code(answer) == (404, "not_found"), (method, path)

    def test_there_is_no_access_without_a_credential_or_with_an_agents(self, world: World) -> None:
        bundle = world.bundle()
        made = world.request(bundle)
        for method, path, body, _ in self.endpoints(world, made, bundle):
            assert self.knock(Caller(), method, path, body).status_code == 401
            answer = self.knock(world.hosts[0].http, method, path, body)
            assert code(answer) == (401, "wrong_credential"), (method, path)

    def test_what_is_under_another_environment_is_404_here(self, world: World) -> None:
        bundle = world.bundle()
        made = world.request(bundle)
        wrong = world.tenant.path(world.tenant.staging)
        for method, path, body, _ in self.endpoints(world, made, bundle):
            if made in path or bundle in path:
                answer = self.knock(world.bob, method, path.replace(world.path, wrong), body)
                assert answer.status_code == 404, (method, path)

    def test_an_unknown_or_malformed_id_is_404(self, world: World) -> None:
        for thing in (SPARE, "x", "1"):
            assert world.bob.get(f"{world.path}/deployments/{thing}").status_code == 404
            assert world.act(thing, "cancel").status_code == 404
            assert world.act(thing, "rollback").status_code == 404

    @pytest.mark.parametrize("body", [{"force": True}, {"reason": 7}, [], {"reason": "x" * 3000}])
    def test_acting_takes_a_reason_and_nothing_else(self, world: World, body: Any) -> None:
        made = world.request()
        for verb in ("cancel", "rollback"):
            answer = world.bob.post(f"{world.path}/deployments/{made}/{verb}", body)
            assert answer.status_code == 400, (verb, answer.content)
        assert world.status(made) == "approved"


class TestRules:
    """Cap, same bundle, reviewers."""

    def test_the_cap_counts_what_is_in_flight_and_frees_with_it(self, world: World) -> None:
        made = [world.request(world.bundle(f"f{n}:drop")) for n in range(4)]
        refused = world.ask(world.bundle("f5:drop"))
        assert code(refused) == (429, "deployment_cap")
        assert int(refused["Retry-After"]) >= 1
        assert refused.json()["in_flight"] == 4
        assert refused.json()["limit"] == 4
        assert world.act(made[3], "cancel").status_code == 200
        assert world.ask(world.bundle("f6:drop")).status_code == 201

    def test_the_same_bundle_in_flight_on_a_shared_target_is_409(self, world: World) -> None:
        one, other = world.hosts
        bundle = world.bundle()
        first = world.request(bundle, [one])
        clash = world.ask(bundle)
        assert code(clash) == (409, "bundle_in_flight")
        assert clash.json()["deployment_id"] == first
        assert world.ask(bundle, [other]).status_code == 201
        world.work()
        world.settle()
        assert world.ask(bundle).status_code == 201

    def test_without_an_eligible_reviewer_is_409(self, staging: World) -> None:
        world = staging
        from apps.access.models import Membership

        Membership.objects.exclude(user=world.tenant.people["bob"]).filter(
            organization=world.tenant.organization
        ).update(role="viewer")
        assert code(world.ask()) == (409, "no_eligible_reviewer")
        assert not Deployment.objects.exists()
        assert not Target.objects.exists()

    def test_every_refusal_leaves_nothing_behind(self, world: World) -> None:
        bundle = world.bundle()
        before = AuditEvent.objects.count()
        world.ask(SPARE)
        world.ask(bundle, targets={"labels": {"a": "b"}})
        world.ask(bundle, strategy={"type": "phased", "phases": [{"percent": 50, "bake_seconds": 0}]})
        assert AuditEvent.objects.count() == before
        assert world.bob.get(f"{world.path}/bundles/{bundle}").json()["used_at"] is None


class TestReading:
    """Lists and conditional reads."""

    def test_the_list_is_newest_first_and_filters(self, world: World) -> None:
        first = world.roll_out(world.bundle("a:drop"), reason="alpha")
        second = world.request(world.bundle("b:drop"), reason="beta")
        rows = world.bob.get(f"{world.path}/deployments").json()["results"]
        assert [row["id"] for row in rows] == [second, first]
        assert rows[1]["targets"]["activated"] == 2
        for query, expected in (("status=active", [first]), ("q=bet", [second]), ("limit=1", [second])):
            rows = world.bob.get(f"{world.path}/deployments?{query}").json()["results"]
            assert [row["id"] for row in rows] == expected
        for bad in ("status=running", "color=red", "limit=0"):
            assert world.bob.get(f"{world.path}/deployments?{bad}").status_code == 400

    def test_a_list_costs_the_same_number_of_queries_whatever_its_length(
        self, world: World, django_assert_max_num_queries: Any
    ) -> None:
        for n in range(3):
            world.roll_out(world.bundle(f"f{n}:drop"))
        world.bob.get(f"{world.path}/deployments")
        with django_assert_max_num_queries(10):
            assert len(world.bob.get(f"{world.path}/deployments").json()["results"]) == 3

    def test_an_unchanged_deployment_is_304(self, world: World) -> None:
        made = world.request()
        first = world.bob.get(f"{world.path}/deployments/{made}")
        again = world.bob.get(f"{world.path}/deployments/{made}", if_none_match=first["ETag"])
        assert again.status_code == 304
        world.work()
        assert world.bob.get(f"{world.path}/deployments/{made}", if_none_match=first["ETag"]).status_code == 200
