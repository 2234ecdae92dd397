"""What revoking a signing key does to deployments: in progress, running, and to be rolled back to."""

from __future__ import annotations

import time
from typing import Any

import pytest

from apps.audit.models import AuditEvent
from apps.core import clock
from apps.deployments.models import Deployment
from apps.deployments.services import builds
from apps.deployments.services.key_revocation import DeploymentsUnderKey
from apps.runtime import trust
from apps.runtime.bundle import read_bundle, verify_bundle
from apps.signing import services as signing
from apps.signing.models import SigningKey
from apps.tenancy.models import Environment
from tests.deployments.world import World
from tests.served import serving
from tests.support import Caller, in_threads

pytestmark = pytest.mark.django_db


WAIT = 25


def keys_path(world: World) -> str:
    return f"/orgs/{world.tenant.organization.pk}/signing-keys"


def active_kid(world: World) -> str:
    return SigningKey.objects.get(organization=world.tenant.organization, status="active").kid


def rotate(world: World) -> str:
    """A new active key; the kid of the former."""
    former = active_kid(world)
    assert world.caller("alice").post(keys_path(world), {}).status_code == 201
    return former


def revoke(world: World, kid: str, caller: Caller | None = None) -> Any:
    answer = (caller or world.caller("alice")).post(f"{keys_path(world)}/{kid}/revoke", {"reason": "it leaked"})
    assert answer.status_code == 200, answer.content
    return answer


def follow_keys(world: World) -> None:
    """Every host fetches and accepts the key sets above its own, as the agent does."""
    for host in world.hosts:
        above = host.http.get(f"/agents/{host.id}/signing-keys?after={host.keys.version}").json()
        host.keys = trust.accept_keyset(host.keys, above["envelopes"])


def test_a_rotation_disturbs_nothing(world: World) -> None:
    made = world.roll_out()
    later = world.row(world.request(world.bundle("a:drop")))
    work = builds.start_build(deployment_id=later.pk, environment_id=world.env.pk)
    assert isinstance(work, builds.Work)
    former = rotate(world)
    assert builds.finish_build(work, builds.make_archive(work), complete=lambda: None) is None
    assert world.row(str(later.pk)).signing_kid == former, "a build ends under the key that it began with"
    follow_keys(world)
    world.settle()
    assert world.status(str(later.pk)) == "active"
    assert world.act(str(later.pk), "rollback").status_code == 200
    world.settle()
    assert {host.runs for host in world.hosts} == {made}
    assert world.row(world.roll_out(world.bundle("b:drop"))).signing_kid == active_kid(world)


def test_what_is_on_the_way_fails_and_what_runs_keeps_running_and_is_to_be_deployed_again(world: World) -> None:
    first = world.roll_out()
    second = world.request(world.bundle("a:drop"))
    world.work()
    world.hosts[0].step()
    assert world.status(second) == "deploying"
    former = rotate(world)
    assert world.status(second) == "deploying"
    revoke(world, former)
    assert world.status(second) == "failed"
    assert world.show(second)["status_reason"].startswith("signing_key_revoked: ")
    assert world.moves(second)[-1] == ("deploying", "failed", "signing_key_revoked")
    assert world.status(first) == "active"
    follow_keys(world)
    for made in (first, second):
        shown = world.show(made)
        assert shown["needs_redeployment"] is True
        assert shown["key_revoked_at"]
    listed = world.bob.get(f"{world.path}/deployments?needs_redeployment=true").json()["results"]
    assert {row["id"] for row in listed} == {first, second}
    assert [host.runs for host in world.hosts] == [second, first]
    assert world.hosts[1].step() == "rollback", "it is told to stay with what it runs, by the active key"
    assert [host.runs for host in world.hosts] == [second, first]
    again = world.roll_out(world.bundle("a:drop"))
    assert {host.runs for host in world.hosts} == {again}
    assert [world.show(made)["needs_redeployment"] for made in (first, second, again)] == [False] * 3
    assert world.bob.get(f"{world.path}/deployments?needs_redeployment=true").json()["results"] == []
    assert world.bob.get(f"{world.path}/deployments?needs_redeployment=maybe").status_code == 400


def test_what_was_approved_or_is_being_built_under_it_fails_and_frees_its_targets(staging: World) -> None:
    world = staging
    building = world.request(world.bundle("a:drop"))
    world.decide(building)
    work = builds.start_build(deployment_id=world.row(building).pk, environment_id=world.env.pk)
    assert isinstance(work, builds.Work)
    archive = builds.make_archive(work)
    waiting = world.request(world.bundle("b:drop"))
    world.decide(waiting)
    undecided = world.request(world.bundle("c:drop"))
    revoke(world, rotate(world))
    for made in (building, waiting):
        assert world.status(made) == "failed"
        assert world.moves(made)[-1][2] == "signing_key_revoked"
    assert world.status(undecided) == "pending_approval"
    note = builds.finish_build(work, archive, complete=lambda: None)
    assert note == "discarded: the deployment is failed"
    world.work()
    assert world.status(waiting) == "failed"
    assert world.decide(undecided).status_code == 200
    follow_keys(world)
    world.work()
    world.settle()
    assert world.status(undecided) == "active"


def test_its_effects_are_shown_before_and_counted_in_its_audit_event(world: World, staging: World) -> None:
    dependents, organization = DeploymentsUnderKey(), world.tenant.organization.pk
    running = world.roll_out()
    ending = world.request(world.bundle("b:drop"))
    deleted = staging.roll_out_approved()
    Environment.objects.filter(pk=staging.env.pk).update(deleted_at=clock.now())
    former = rotate(world)
    assert dependents.preview_revocation(organization, former) == [
        "1 deployment is in progress and will fail: orders v1 in Orders / dev.",
        "1 deployment is running, will keep running, can't be rolled back to, and must be redeployed: "
        "orders v1 in Orders / dev.",
    ]
    unused = ["No deployment signed by this key is in progress or running."]
    assert dependents.preview_revocation(organization, active_kid(world)) == unused
    waiting = world.request(world.bundle("c:drop"))
    assert waiting not in world.builds()
    answer = world.caller("alice").post(f"{keys_path(world)}/{former}/revoke", {})
    assert answer.status_code == 200
    assert waiting in world.builds(), "it is approved under the new key, and its targets are free"
    details = AuditEvent.objects.get(action="signing_key.revoked").details
    assert (details["deployments_failed"], details["deployments_to_redeploy"]) == (1, 1)
    assert (world.status(ending), world.status(running)) == ("failed", "active")
    assert world.show(ending)["status_reason"] == f"signing_key_revoked: {former}"
    assert world.row(deleted).key_revoked_at is None


def test_the_first_ten_deployments_that_it_ends_are_named_by_place(world: World, staging: World) -> None:
    def preview() -> list[str]:
        return DeploymentsUnderKey().preview_revocation(world.tenant.organization.pk, active_kid(world))

    world.request()
    staging.decide(staging.request())
    places = "orders v1 in Orders / dev; orders v1 in Orders / staging"
    assert preview() == [f"2 deployments are in progress and will fail: {places}."]
    Environment.objects.filter(pk=world.env.pk).update(max_in_flight_deployments=20)
    for n in range(8):
        world.request(world.bundle(f"f{n}:drop"))
    places = f"{', '.join(['orders v1'] * 9)} in Orders / dev; orders v1 in Orders / staging"
    assert preview() == [f"10 deployments are in progress and will fail: {places}."]
    world.request(world.bundle("last:drop"))
    assert preview() == [f"11 deployments are in progress and will fail: {places}; and 1 more."]


def test_a_bundle_whose_approval_alone_it_signed_is_under_it_too(staging: World) -> None:
    world = staging
    made = world.request()
    world.decide(made)
    former = rotate(world)
    world.work()
    assert world.row(made).signing_kid != former
    follow_keys(world)
    world.settle()
    assert world.status(made) == "active"
    revoke(world, former)
    assert world.show(made)["needs_redeployment"] is True


def test_no_agent_is_handed_or_rolled_back_to_a_bundle_under_it(world: World) -> None:
    first = world.roll_out()
    former = rotate(world)
    follow_keys(world)
    second = world.roll_out(world.bundle("a:drop"))
    revoke(world, former)
    answer = world.act(second, "rollback")
    assert (answer.status_code, answer.json()["code"]) == (409, "signing_key_revoked")
    assert answer.json()["deployment_id"] == first
    assert world.status(second) == "active"
    host = world.hosts[0]
    answer = host.http.get(f"/agents/{host.id}/deployments/{first}/bundle")
    assert (answer.status_code, answer.json()["code"]) == (409, "signing_key_revoked")
    assert b"".join(host.http.get(f"/agents/{host.id}/deployments/{second}/bundle").streaming_content)


def test_a_host_refuses_what_it_signed_wherever_it_comes_from(world: World) -> None:
    world.roll_out()
    host = world.hosts[0]
    directive = host.heartbeat()
    data = b"".join(host.http.get(f"/agents/{host.id}/deployments/{directive.deployment_id}/bundle").streaming_content)
    revoke(world, rotate(world))
    follow_keys(world)
    with pytest.raises(trust.TrustError) as caught:
        verify_bundle(read_bundle(data), keys=host.keys)
    assert caught.value.code == "key_revoked"


def test_a_rollout_without_a_way_back_is_called_off_where_it_stands(world: World) -> None:
    first = world.roll_out()
    former = rotate(world)
    follow_keys(world)
    second = world.request(world.bundle("a:drop"))
    world.work()
    world.hosts[0].step()
    revoke(world, former)
    answer = world.act(second, "cancel")
    assert answer.status_code == 200, answer.content
    assert world.status(second) == "failed"
    stays = "the previous bundle's signing key is revoked, so updated agents are not rolled back"
    assert world.show(second)["status_reason"] == f"cancelled: called off; {stays}"
    assert [host.runs for host in world.hosts] == [second, first]
    assert world.hosts[1].step() == "rollback"
    assert [host.runs for host in world.hosts] == [second, first]


def test_one_that_no_agent_fetched_is_cancelled_although_the_former_is_under_it(world: World) -> None:
    first = world.roll_out()
    former = rotate(world)
    follow_keys(world)
    second = world.request(world.bundle("a:drop"))
    world.work()
    revoke(world, former)
    assert world.act(second, "cancel").status_code == 200
    assert world.status(second) == "rolled_back"
    assert {host.runs for host in world.hosts} == {first}


@pytest.mark.parametrize("way_back", ["good", "revoked"])
def test_auto_rollback_after_a_revocation_goes_back_only_to_what_verifies(world: World, way_back: str) -> None:
    if way_back == "good":
        first = world.roll_out()
        rotate(world)
        follow_keys(world)
    else:
        first = world.roll_out()
    second = world.request(world.bundle("a:drop"), strategy={"type": "all_at_once", "auto_rollback": True})
    world.work()
    world.hosts[0].step()
    revoke(world, rotate(world))
    follow_keys(world)
    moves = [(to, trigger) for _, to, trigger in world.moves(second)]
    if way_back == "good":
        assert moves[-2:] == [("failed", "signing_key_revoked"), ("rolling_back", "auto_rollback")]
        world.settle()
        assert {host.runs for host in world.hosts} == {first}
    else:
        assert moves[-1] == ("failed", "signing_key_revoked")
        assert "not rolled back automatically" in world.show(second)["status_reason"]
        assert [host.runs for host in world.hosts] == [second, first]


def test_a_rollback_in_progress_to_what_it_signed_fails_with_the_first_report(world: World) -> None:
    world.roll_out()
    former = rotate(world)
    follow_keys(world)
    second = world.roll_out(world.bundle("a:drop"))
    assert world.act(second, "rollback").status_code == 200
    revoke(world, former)
    assert world.status(second) == "rolling_back"
    host = world.hosts[0]
    directive = host.heartbeat()
    answer = host.http.get(f"/agents/{host.id}/deployments/{directive.deployment_id}/bundle")
    assert (answer.status_code, answer.json()["code"]) == (409, "signing_key_revoked")
    assert host.report(directive, "failed", reason="fetch_refused: signing_key_revoked") == 200
    assert world.status(second) == "failed"
    assert host.runs == second, "what could not go back runs on"


def test_another_organization_notices_nothing(world: World) -> None:
    made = world.roll_out()
    charlie = world.tenant.caller("charlie")
    path = f"/orgs/{world.tenant.other_organization.pk}/signing-keys"
    former = charlie.get(path).json()["results"][0]["kid"]
    charlie.post(path, {})
    assert charlie.post(f"{path}/{former}/revoke", {}).status_code == 200
    assert world.show(made)["key_revoked_at"] is None


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_waiting_poll_hears_of_a_new_key_set_at_once(transactional_db: None, world: World) -> None:
    host = world.hosts[0]
    directive = host.heartbeat()
    known = f"key_set_version={host.keys.version}&after={directive.directive_seq}"
    alice = world.caller("alice")
    began = time.monotonic()
    with serving() as server:
        poll = server.begin("GET", f"/api/v1/agents/{host.id}/deployment?wait={WAIT}&{known}", host.http.token or "")
        server.until_waiting(1)
        assert alice.post(keys_path(world), {}).status_code == 201
        answer = poll.result(WAIT + 5)
    assert answer.status == 200
    assert time.monotonic() - began < WAIT, "it was woken, and did not wait until its time was over"
    body = answer.json()
    assert body["key_set_version"] == host.keys.version + 1
    assert body["desired"]["directive"]["directive_seq"] == directive.directive_seq
    assert body["desired"]["envelope"]["signatures"][0]["keyid"] == active_kid(world)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_revocation_while_a_build_signs_fails_it_or_discards_it(transactional_db: None, world: World) -> None:
    for n in range(4):
        made = world.row(world.request(world.bundle(f"f{n}:drop")))
        work = builds.start_build(deployment_id=made.pk, environment_id=world.env.pk)
        assert isinstance(work, builds.Work)
        former, caller = rotate(world), world.tenant.caller("alice")

        def finish(work: builds.Work = work) -> str | None:
            return builds.finish_build(work, builds.make_archive(work), complete=lambda: None)

        note, revoked = in_threads(finish, lambda k=former, c=caller: revoke(world, k, c))
        assert not isinstance(note, BaseException), note
        assert revoked.status_code == 200
        assert world.status(str(made.pk)) == "failed"
        assert world.moves(str(made.pk))[-1][2] == "signing_key_revoked"


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_revocation_while_builds_begin_leaves_nothing_on_the_way_under_it(
    transactional_db: None, world: World
) -> None:
    for n in range(4):
        made = world.row(world.request(world.bundle(f"f{n}:drop")))
        caller = world.tenant.caller("alice")
        former = active_kid(world)

        def turn(c: Caller = caller, k: str = former) -> Any:
            assert c.post(keys_path(world), {}).status_code == 201
            return revoke(world, k, c)

        begun, revoked = in_threads(
            lambda m=made: builds.start_build(deployment_id=m.pk, environment_id=world.env.pk), turn
        )
        assert not isinstance(begun, BaseException), begun
        assert revoked.status_code == 200
        row = world.row(str(made.pk))
        on_the_way = Deployment.objects.filter(signing_kid=former, status__in=("building", "deploying"))
        assert not on_the_way.exists(), (row.status, row.signing_kid)
        if row.status == "building":
            world.act(str(made.pk), "cancel")


def test_a_build_that_can_not_open_its_key_is_tried_again_and_not_called_revoked(world: World, settings: Any) -> None:
    made = world.row(world.request())
    work = builds.start_build(deployment_id=made.pk, environment_id=world.env.pk)
    assert isinstance(work, builds.Work)
    ring = settings.BYTEOR_KEY_ENCRYPTION_KEYS
    settings.BYTEOR_KEY_ENCRYPTION_KEYS = [("another", b"x" * 32)]
    with pytest.raises(Exception, match="is not configured"):
        builds.start_build(deployment_id=made.pk, environment_id=world.env.pk)
    host = world.hosts[0]
    answer = host.http.post(f"/agents/{host.id}/heartbeat", {"status": "idle", "version": "1", "key_set_version": 1})
    assert (answer.status_code, answer.json()["code"]) == (503, "key_encryption_key_missing")
    settings.BYTEOR_KEY_ENCRYPTION_KEYS = ring
    assert world.status(str(made.pk)) == "building"
    assert signing.signer_for(world.tenant.organization.pk, work.signer.kid) == work.signer
