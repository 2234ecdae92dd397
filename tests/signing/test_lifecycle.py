"""Rotating, retiring and revoking over HTTP, the chain of key sets, and concurrent calls."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from apps.access.roles import Role
from apps.audit import services as audit
from apps.audit.models import AuditEvent
from apps.core import clock
from apps.core.errors import Conflict, NotFound
from apps.core.fsm import advance, legal_moves
from apps.runtime import trust
from apps.signing import services
from apps.signing.models import KeySetVersion, SigningKey
from apps.tenancy.models import Organization
from apps.tenancy.scope import Scope
from tests.support import Tenant, caller_for, give_role, in_threads, make_person

pytestmark = pytest.mark.django_db


def keys_path(tenant: Tenant) -> str:
    return f"/orgs/{tenant.organization.pk}/signing-keys"


def rotate(tenant: Tenant, who: str = "alice") -> dict[str, Any]:
    answer = tenant.caller(who).post(keys_path(tenant), {})
    assert answer.status_code == 201, answer.content
    return dict(answer.json())


def act(tenant: Tenant, kid: str, verb: str, who: str = "alice", body: Any = None) -> Any:
    return tenant.caller(who).post(f"{keys_path(tenant)}/{kid}/{verb}", body or {})


def statuses(tenant: Tenant) -> dict[str, str]:
    rows = tenant.caller("alice").get(keys_path(tenant)).json()["results"]
    return {row["kid"]: row["status"] for row in rows}


def followed(tenant: Tenant) -> trust.KeySet:
    """The newest key set, as a client that trusts the first one verifies it."""
    envelopes = services.key_set(tenant.organization.pk)["envelopes"]
    assert isinstance(envelopes, list)
    return trust.accept_keyset(trust.accept_keyset(None, envelopes[:1]), envelopes[1:])


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_rotating_creates_an_active_key_and_its_predecessor_signs_the_new_key_set(tenant: Tenant) -> None:
    (first,) = statuses(tenant)
    made = rotate(tenant)
    assert made["status"] == "active"
    assert statuses(tenant) == {first: "retired", made["kid"]: "active"}
    newest = KeySetVersion.objects.get(organization=tenant.organization, version=2).envelope
    assert [s["keyid"] for s in newest["signatures"]] == [first]
    keys = followed(tenant)
    assert (keys.version, {k.kid: k.status for k in keys.keys}) == (2, statuses(tenant))
    retired = keys.by_kid()[first]
    assert retired.not_after is not None
    assert services.active_signer(tenant.organization.pk).kid == made["kid"]
    assert services.signer_for(tenant.organization.pk, first).kid == first, "what it began it may finish"
    event = AuditEvent.objects.get(action="signing_key.rotated")
    assert (event.details["replaces"], event.details["key_set_version"]) == (first, 2)


def test_a_compromised_key_is_rotated_then_revoked_and_its_private_part_is_deleted(tenant: Tenant) -> None:
    (first,) = statuses(tenant)
    second = rotate(tenant)["kid"]
    answer = act(tenant, first, "revoke", body={"reason": "laptop stolen"})
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["reason"]) == ("revoked", "laptop stolen")
    assert answer.json()["revoked_at"] is not None
    row = SigningKey.objects.get(kid=first)
    assert (bytes(row.private_box), row.wrapped_by) == (b"", "")
    keys = followed(tenant)
    assert (keys.version, keys.by_kid()[first].status) == (3, "revoked")
    newest = KeySetVersion.objects.get(organization=tenant.organization, version=3).envelope
    assert [s["keyid"] for s in newest["signatures"]] == [second]
    with pytest.raises(Exception, match="revoked"):
        services.signer_for(tenant.organization.pk, first)
    assert AuditEvent.objects.get(action="signing_key.revoked").details["reason"] == "laptop stolen"
    assert audit.verify(tenant.organization.pk).ok


def test_a_rotation_that_another_one_overtook_is_refused_and_names_the_active_key(tenant: Tenant) -> None:
    (first,) = statuses(tenant)
    actor, scope = tenant.principal("alice"), Scope(tenant.organization)
    second = services.rotate(actor=actor, scope=scope, replacing=first)
    with pytest.raises(Conflict) as refused:
        services.rotate(actor=actor, scope=scope, replacing=first)
    assert (refused.value.code, refused.value.extra) == ("already_rotated", {"kid": second.kid})
    assert statuses(tenant) == {first: "retired", second.kid: "active"}


def test_without_an_active_key_nothing_is_signed(tenant: Tenant) -> None:
    (only,) = statuses(tenant)
    advance(SigningKey.objects.get(kid=only), "retire")
    for attempt in (
        lambda: services.active_signer(tenant.organization.pk),
        lambda: services.rotate(actor=tenant.principal("alice"), scope=Scope(tenant.organization)),
    ):
        with pytest.raises(Conflict) as refused:
            attempt()
        assert refused.value.code == "no_active_key"


def test_a_deleted_organization_has_no_keys_to_change(tenant: Tenant) -> None:
    (first,) = statuses(tenant)
    Organization.objects.filter(pk=tenant.organization.pk).update(deleted_at=clock.now())
    actor, scope = tenant.principal("alice"), Scope(tenant.organization)
    for attempt in (
        lambda: services.rotate(actor=actor, scope=scope),
        lambda: services.retire(scope=scope, kid=first),
        lambda: services.revoke(actor=actor, scope=scope, kid=first),
    ):
        with pytest.raises(NotFound):
            attempt()


@pytest.mark.parametrize("verb", ["retire", "revoke"])
def test_the_last_active_key_stays_until_there_is_another(tenant: Tenant, verb: str) -> None:
    (only,) = statuses(tenant)
    assert code(act(tenant, only, verb)) == (409, "last_active_key")
    assert statuses(tenant) == {only: "active"}
    assert KeySetVersion.objects.filter(organization=tenant.organization).count() == 1


def test_repeated_actions_change_nothing_and_revoked_is_final(tenant: Tenant) -> None:
    (first,) = statuses(tenant)
    rotate(tenant)
    assert act(tenant, first, "retire").json()["status"] == "retired"
    assert act(tenant, first, "revoke").json()["status"] == "revoked"
    assert act(tenant, first, "revoke", body={"reason": "again"}).json()["reason"] == ""
    answer = act(tenant, first, "retire")
    assert code(answer) == (409, "invalid_transition")
    assert {k: answer.json()[k] for k in ("from", "to", "allowed")} == {
        "from": "revoked",
        "to": "retired",
        "allowed": [],
    }
    assert followed(tenant).version == 3, "what changed nothing makes no version"


def test_only_an_org_admin_changes_keys_and_others_keys_do_not_exist(tenant: Tenant) -> None:
    (first,) = statuses(tenant)
    guest = make_person("guest")
    give_role(guest, Role.PROJECT_ADMIN, tenant.organization, tenant.project)
    for caller in (tenant.caller("bob"), tenant.caller("vera"), caller_for(guest)):
        assert caller.get(keys_path(tenant)).status_code == 200
        for path in ("", f"/{first}/retire", f"/{first}/revoke"):
            assert code(caller.post(keys_path(tenant) + path, {})) == (403, "permission_denied")
    foreign = SigningKey.objects.get(organization=tenant.other_organization).kid
    for kid in (foreign, "k_" + "0" * 32, "%00", "x" * 300):
        assert act(tenant, kid, "revoke").status_code == 404
    assert tenant.caller("charlie").post(keys_path(tenant), {}).status_code == 404
    assert statuses(tenant) == {first: "active"}


@pytest.mark.parametrize("body", [{"reason": 5}, {"reason": "x" * 1001}, {"kid": "x"}, [], {"reason": "a\u0000b"}])
def test_a_wrong_body_is_400_and_changes_nothing(tenant: Tenant, body: Any) -> None:
    (first,) = statuses(tenant)
    for path in (keys_path(tenant), f"{keys_path(tenant)}/{first}/revoke"):
        assert tenant.caller("alice").post(path, body).status_code == 400
    assert statuses(tenant) == {first: "active"}


def test_an_agent_gets_every_set_above_its_own_and_a_new_agent_only_the_newest(tenant: Tenant) -> None:
    (first,) = statuses(tenant)
    rotate(tenant)
    rotate(tenant)
    act(tenant, first, "revoke")
    organization = tenant.organization.pk
    known = trust.accept_keyset(None, services.key_set(organization)["envelopes"][:1])  # type: ignore[index]
    above = services.key_set(organization, after=1)
    assert len(above["envelopes"]) == 3  # type: ignore[arg-type]
    keys = trust.accept_keyset(known, above["envelopes"])  # type: ignore[arg-type]
    assert [k.as_dict() for k in keys.keys] == above["keys"]
    given = services.enrollment_key_set(organization)
    assert trust.accept_keyset(None, given["envelopes"]) == keys  # type: ignore[arg-type]
    assert given["version"] == services.key_set_version(organization) == 4


def test_a_set_holds_64_keys_and_drops_revoked_ones_first(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "MAX_KEYS", 3)
    (first,) = statuses(tenant)
    second = rotate(tenant)["kid"]
    rotate(tenant)
    assert code(tenant.caller("alice").post(keys_path(tenant), {})) == (409, "too_many_keys")
    # the older one still verifies: the revoked one is dropped, although it is newer
    act(tenant, second, "revoke")
    newest = rotate(tenant)["kid"]
    named = followed(tenant).by_kid()
    assert second not in named
    assert {first, newest} <= set(named)


def test_the_moves_are_the_ones_in_the_code_also_for_the_database(tenant: Tenant) -> None:
    assert legal_moves(SigningKey) == {"active": {"retired"}, "retired": {"revoked"}, "revoked": frozenset()}
    key = SigningKey.objects.get(organization=tenant.organization)
    with pytest.raises(AttributeError):
        key.status = "revoked"
    with pytest.raises(AttributeError):
        SigningKey.objects.filter(pk=key.pk).update(status="revoked")
    for statement in (
        "UPDATE signing_signingkey SET status = 'revoked'",
        "UPDATE signing_signingkey SET kid = 'k_other'",
        "UPDATE signing_keysetversion SET version = 9",
    ):
        with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_two_rotations_at_once_are_one_after_the_other(transactional_db: None, tenant: Tenant) -> None:
    callers = [tenant.caller("alice") for _ in range(4)]
    answers = in_threads(*[lambda c=c: c.post(keys_path(tenant), {}) for c in callers])
    assert [a.status_code for a in answers] == [201] * 4
    assert Counter(statuses(tenant).values()) == {"active": 1, "retired": 4}
    assert followed(tenant).version == 5
    assert audit.verify(tenant.organization.pk).ok


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_revocation_asked_for_four_times_at_once_happens_once(transactional_db: None, tenant: Tenant) -> None:
    (first,) = statuses(tenant)
    rotate(tenant)
    callers = [tenant.caller("alice") for _ in range(4)]
    path = f"{keys_path(tenant)}/{first}/revoke"
    answers = in_threads(*[lambda c=c: c.post(path, {}) for c in callers])
    assert [a.status_code for a in answers] == [200] * 4
    assert followed(tenant).version == 3
    assert AuditEvent.objects.filter(action="signing_key.revoked").count() == 1
