"""Many ask at one moment: the cap is exact, one text is one version, one edit wins, a token lets one host in."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from apps.agents.models import Agent, AgentKey
from apps.blobs.purge import purge_tombstones
from apps.deployments.models import Deployment, Target
from apps.pipelines.models import PipelineVersion
from apps.tenancy.models import Environment, Project
from tests import invariants
from tests.deployments.world import SPEC, World
from tests.races.conftest import Racers, post, statuses
from tests.support import Caller

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]


def test_fifty_requests_for_a_cap_of_four(staging: World, racers: Racers) -> None:
    world = staging
    bundles = [world.bundle(f"f{n}:drop") for n in range(50)]
    who = [world.caller("bob"), world.caller("carol")]
    answers = racers.race(
        *[
            post(who[n % 2], f"{world.path}/deployments", {"bundle_id": bundle, "targets": {"all": True}})
            for n, bundle in enumerate(bundles)
        ]
    )
    assert statuses(answers) == {201: 4, 429: 46}
    for refused in (a for a in answers if a.status == 429):
        assert refused.code == "deployment_cap"
        assert int(refused.headers["Retry-After"]) >= 1
    assert Deployment.objects.in_flight().count() == Deployment.objects.count() == 4


def test_one_request_sent_by_many_is_taken_once(dev: World, racers: Racers) -> None:
    body = {"bundle_id": dev.bundle(), "targets": {"all": True}}
    answers = racers.race(*[post(dev.bob, f"{dev.path}/deployments", body)] * 12)
    assert statuses(answers) == {201: 1, 409: 11}
    assert {a.code for a in answers if a.status == 409} == {"bundle_in_flight"}


def test_one_text_promoted_by_many_is_one_version(dev: World, racers: Racers) -> None:
    drafts = [dev.bob.post(f"{dev.path}/drafts", {"name": f"d{n}", "spec": SPEC}) for n in range(12)]
    answers = racers.race(
        *[post(dev.bob, f"{dev.path}/drafts/{d.json()['id']}/promote", headers={"if_match": d["ETag"]}) for d in drafts]
    )
    assert statuses(answers) == {201: 1, 200: 11}
    assert len({a.body["id"] for a in answers}) == PipelineVersion.objects.count() == 1


def test_versions_promoted_at_once_are_numbered_without_a_gap(dev: World, racers: Racers) -> None:
    drafts = [
        dev.bob.post(f"{dev.path}/drafts", {"name": "d", "spec": SPEC.replace("orders", f"orders{n}")})
        for n in range(12)
    ]
    answers = racers.race(*[post(dev.bob, f"{dev.path}/drafts/{d.json()['id']}/promote") for d in drafts])
    assert statuses(answers) == {201: 12}
    assert sorted(a.body["number"] for a in answers) == list(range(1, 13))


def change(caller: Caller, path: str, body: Any, tag: str | None, method: str = "PATCH") -> dict[str, Any]:
    headers = {"if_match": tag} if tag else {}
    return {"method": method, "path": path, "body": body, "token": caller.token, "headers": headers}


def test_two_edits_with_one_tag(dev: World, racers: Racers) -> None:
    """Of a draft, an agent and an environment: one is accepted, the others get the answer that it has changed."""
    alice = dev.tenant.caller("alice")
    draft = dev.bob.post(f"{dev.path}/drafts", {"name": "d", "spec": SPEC})
    for path in (f"{dev.path}/drafts/{draft.json()['id']}", f"{dev.path}/agents/{dev.hosts[0].id}", dev.path):
        tag = alice.get(path)["ETag"]
        answers = racers.race(*[change(alice, path, {"name": f"n{n}"}, tag) for n in range(6)])
        assert statuses(answers) == {200: 1, 412: 5}, path
        won = next(a for a in answers if a.status == 200)
        assert alice.get(path).json()["name"] == won.body["name"]


def test_edits_of_different_fields_do_not_undo_each_other(dev: World, racers: Racers) -> None:
    """A merge patch changes what it names, also when another one comes between its read and its write."""
    alice = dev.tenant.caller("alice")
    for n in range(1, 5):
        wanted: list[dict[str, Any]] = [
            {"name": f"name{n}"},
            {"max_in_flight_deployments": 4 + n},
            {"policy": {"credential_ttl_hours": 8 - n}},
            {"policy": {"approval_window_hours": 24 - n}},
            {"retention_days": {"snapshot": 10 + n}},
        ]
        answers = racers.race(*[change(alice, dev.path, body, None) for body in wanted])
        assert statuses(answers) == {200: len(wanted)}
        now = alice.get(dev.path).json()
        assert (now["name"], now["max_in_flight_deployments"]) == (f"name{n}", 4 + n)
        assert now["policy"]["credential_ttl_hours"] == 8 - n
        assert now["policy"]["approval_window_hours"] == 24 - n
        assert now["retention_days"]["snapshot"] == 10 + n


def test_labels_of_an_agent_set_at_once_are_all_kept(dev: World, racers: Racers) -> None:
    path = f"{dev.path}/agents/{dev.hosts[0].id}"
    answers = racers.race(*[change(dev.bob, path, {"labels": {f"l{n}": "x"}}, None) for n in range(6)])
    assert statuses(answers) == {200: 6}
    assert set(dev.bob.get(path).json()["labels"]) == {f"l{n}" for n in range(6)}


def test_a_single_use_token_lets_one_host_in(dev: World, racers: Racers) -> None:
    token = dev.bob.post(f"{dev.path}/enrollment-tokens", {}).json()["token"]
    before = Agent.objects.count()
    answers = racers.race(*[post(Caller(token), f"{dev.path}/agents", {"hostname": f"h{n}"}) for n in range(12)])
    assert statuses(answers) == {201: 1, 401: 11}
    assert {a.code for a in answers if a.status == 401} == {"token_used"}
    assert Agent.objects.count() == before + 1


def test_one_enrollment_repeated_at_once_is_one_agent_with_one_key(dev: World, racers: Racers) -> None:
    token = dev.bob.post(f"{dev.path}/enrollment-tokens", {}).json()["token"]
    same = post(Caller(token), f"{dev.path}/agents", headers={"idempotency_key": "once"})
    answers = racers.race(*[same] * 6)
    assert statuses(answers) == {201: 6}
    assert len({a.body["agent_id"] for a in answers}) == 1
    agent_id = answers[0].body["agent_id"]
    assert AgentKey.objects.filter(agent_id=agent_id, revoked_at__isnull=True).count() == 1
    good = [a for a in answers if Caller(a.body["api_key"]).get(f"/agents/{agent_id}/signing-keys").status_code == 200]
    assert len(good) == 1


def test_rotations_at_once_leave_one_new_key_and_the_one_in_use(dev: World, racers: Racers) -> None:
    host = dev.hosts[0]
    host.heartbeat()
    answers = racers.race(*[post(host.http, f"/agents/{host.id}/rotate-key")] * 6)
    assert statuses(answers) == {200: 6}
    live = AgentKey.objects.filter(agent_id=host.id, revoked_at__isnull=True)
    assert live.count() == 2
    host.heartbeat()
    keys = [Caller(a.body["api_key"]) for a in answers]
    working = [key for key in keys if key.get(f"/agents/{host.id}/signing-keys").status_code == 200]
    assert len(working) == 1
    assert host.http.post(f"/agents/{host.id}/rotate-key", {}).json()["code"] == "key_replaced"


def test_a_project_deleted_against_requests_below_it(dev: World, racers: Racers) -> None:
    """Either the deletion was first and nothing is asked for any more, or it names what is in flight; never both."""
    world = dev
    alice = world.tenant.caller("alice")
    made = alice.post(f"/orgs/{world.tenant.organization.pk}/projects", {"name": "Doomed"}).json()
    for round_ in range(4):
        project = f"/orgs/{world.tenant.organization.pk}/projects/{made['id']}"
        answer = alice.post(f"{project}/environments", {"name": f"E{round_}", "posture": "dev"})
        assert answer.status_code == 201, answer.content
        path = f"{project}/environments/{answer.json()['id']}"
        world.enroll(1, at=path)
        bundle = world.bundle(f"r{round_}:drop", at=path)
        world.work()
        asked = post(world.bob, f"{path}/deployments", {"bundle_id": bundle, "targets": {"all": True}})
        *requests, deleted = racers.race(
            asked, asked, asked, {"method": "DELETE", "path": project, "token": alice.token, "wait": 0.02 * round_}
        )
        taken = [a for a in requests if a.status == 201]
        there = Project.objects.filter(pk=made["id"], deleted_at__isnull=True).exists()
        if deleted.status == 409:
            assert there
            assert deleted.code == "deletion_blocked"
            assert len(taken) == 1
            assert (
                world.caller("bob")
                .post(f"{path}/deployments/{taken[0].body['id']}/cancel", {"reason": "called off"})
                .status_code
                == 200
            )
            world.hosts.pop()
        else:
            assert deleted.status in (204, 202)
            assert not there
            assert not taken, "something in flight was deleted without force"
            made = alice.post(f"/orgs/{world.tenant.organization.pk}/projects", {"name": "Doomed"}).json()
            world.hosts.pop()
        invariants.check()


def test_nothing_is_made_below_what_is_being_deleted(dev: World, racers: Racers) -> None:
    """What is made below an organization while it is deleted is refused, or goes with it."""
    alice = dev.tenant.caller("alice")
    for round_ in range(3):
        organization = alice.post("/orgs", {"name": f"Doomed {round_}"}).json()["id"]
        project = (
            f"/orgs/{organization}/projects/{alice.post(f'/orgs/{organization}/projects', {'name': 'P'}).json()['id']}"
        )
        *made, deleted = racers.race(
            *[post(alice, f"{project}/environments", {"name": f"E{n}", "posture": "dev"}) for n in range(6)],
            *[post(alice, f"/orgs/{organization}/projects", {"name": f"P{n}"}) for n in range(3)],
            {"method": "DELETE", "path": f"/orgs/{organization}", "token": alice.token, "wait": 0.03 * round_},
        )
        assert deleted.status in (204, 202)
        assert set(statuses(made)) <= {201, 404}
        for answer in made:
            if answer.status == 201:
                kind = "environments" if "posture" in answer.body else "projects"
                above = project if kind == "environments" else f"/orgs/{organization}"
                assert alice.get(f"{above}/{kind}/{answer.body['id']}").status_code == 404
        assert not Environment.objects.filter(project__organization_id=organization, deleted_at__isnull=True).exists()
        assert not Project.objects.filter(organization_id=organization, deleted_at__isnull=True).exists()


def test_a_forced_deletion_ends_every_credential_at_once(dev: World, racers: Racers) -> None:
    """Whatever raced with it: afterwards no key below the project works, and nothing below it is left."""
    world = dev
    alice = world.tenant.caller("alice")
    world.request()
    project = world.path.rsplit("/environments", 1)[0]
    token = world.bob.post(f"{world.path}/enrollment-tokens", {"max_uses": 5}).json()["token"]
    beat = {"status": "idle", "version": "1", "key_set_version": 1, "running": None}
    *_, deleted = racers.race(
        *[post(host.http, f"/agents/{host.id}/heartbeat", beat) for host in world.hosts for _ in range(2)],
        *[post(Caller(token), f"{world.path}/agents", {"hostname": f"h{n}"}) for n in range(3)],
        {"do": "drain"},
        {"method": "DELETE", "path": f"{project}?force=true", "token": alice.token},
    )
    assert deleted.status in (204, 202)
    for host in world.hosts:
        assert host.http.post(f"/agents/{host.id}/heartbeat", beat).status_code == 401
    assert Caller(token).post(f"{world.path}/agents", {}).status_code == 401
    assert alice.get(world.path).status_code == 404
    purge_tombstones()
    project_id = uuid.UUID(project.rsplit("/", 1)[1])
    assert not Environment.objects.filter(project_id=project_id).exists()
    assert not Target.objects.filter(deployment__environment__project_id=project_id).exists()
