"""What signing keys are used for, and what their changes record, down to each field."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import time_machine

from apps.audit.models import AuditEvent
from apps.core import clock
from apps.core.errors import Conflict, NotFound
from apps.core.ids import new_id
from apps.runtime import trust
from apps.signing import services
from apps.signing.models import KeySetVersion, SigningKey
from apps.signing.services import key_use
from apps.signing.services.reencryption import missing_encryption_keys, reencrypt
from apps.signing.vault import VaultError, seal, unseal
from apps.tenancy.scope import Scope
from tests.support import Tenant

pytestmark = pytest.mark.django_db

START = dt.datetime(2026, 5, 4, 10, 0, 0, 123_456, dt.UTC)
WHOLE_MS = START.replace(microsecond=123_000)


def active(tenant: Tenant) -> SigningKey:
    return SigningKey.objects.get(organization=tenant.organization, status="active")


def rotate(tenant: Tenant, **more: Any) -> SigningKey:
    return services.rotate(actor=tenant.principal("alice"), scope=Scope(tenant.organization), **more)


def revoke(tenant: Tenant, kid: str, **more: Any) -> SigningKey:
    return services.revoke(actor=tenant.principal("alice"), scope=Scope(tenant.organization), kid=kid, **more)


def recorded(tenant: Tenant, action: str) -> AuditEvent:
    return AuditEvent.objects.get(organization_id=tenant.organization.pk, action=action)


# --- changes of keys ---


def test_the_first_key_is_recorded_with_its_key_set(tenant: Tenant) -> None:
    first = active(tenant)
    event = recorded(tenant, "signing_key.created")
    assert (event.target, event.details) == (f"signing_key:{first.kid}", {"kid": first.kid, "key_set_version": 1})
    assert event.resource_scope == Scope(tenant.organization).as_dict()
    envelope = KeySetVersion.objects.get(organization=tenant.organization).envelope
    keys = trust.accept_keyset(None, [envelope])
    assert (keys.org_id, keys.version) == (str(tenant.organization.pk), 1)
    assert keys.keys == (key_use.trusted(first),)


def test_a_rotation_is_recorded_and_dated_to_the_millisecond(tenant: Tenant) -> None:
    first = active(tenant)
    with time_machine.travel(START, tick=False):
        second = rotate(tenant, replacing=first.kid, reason="r" * 1200)
    first.refresh_from_db()
    assert (first.status, first.not_after, second.not_before, second.not_after) == ("retired", WHOLE_MS, WHOLE_MS, None)
    event = recorded(tenant, "signing_key.rotated")
    assert event.target == f"signing_key:{second.kid}"
    assert event.actor == f"person:{tenant.people['alice'].pk}"
    assert event.details == {"kid": second.kid, "replaces": first.kid, "key_set_version": 2, "reason": "r" * 1000}
    assert key_use.trusted(first) == trust.TrustedKey(
        first.kid, bytes(first.public_key), "retired", clock.to_ms(first.not_before), clock.to_ms(WHOLE_MS)
    )
    payload, _ = trust.envelope_payload(
        KeySetVersion.objects.get(organization=tenant.organization, version=2).envelope, trust.PAYLOAD_KEYSET
    )
    assert trust.load_canonical(payload, "c", "it")["issued_at"] == clock.to_ms(START)


def test_a_revocation_is_recorded_and_deletes_the_private_part(tenant: Tenant) -> None:
    first = active(tenant)
    rotate(tenant)
    with time_machine.travel(START, tick=False):
        revoked = revoke(tenant, first.kid, reason="s" * 1200)
    revoked.refresh_from_db()
    assert (revoked.status, revoked.revoked_at, revoked.reason) == ("revoked", START, "s" * 1000)
    assert (bytes(revoked.private_box), revoked.wrapped_by) == (b"", "")
    event = recorded(tenant, "signing_key.revoked")
    assert (event.target, event.actor) == (f"signing_key:{first.kid}", f"person:{tenant.people['alice'].pk}")
    found = {name: event.details[name] for name in ("kid", "key_set_version", "reason")}
    assert found == {"kid": first.kid, "key_set_version": 3, "reason": "s" * 1000}
    # the second time nothing happens, and nothing is recorded
    again = revoke(tenant, first.kid, reason="other")
    assert again.reason == "s" * 1000
    assert recorded(tenant, "signing_key.revoked") == event
    assert services.key_set_version(tenant.organization.pk) == 3


def test_the_active_key_is_neither_retired_nor_revoked(tenant: Tenant) -> None:
    first, scope = active(tenant), Scope(tenant.organization)
    attempts = {
        "retired": lambda kid: services.retire(scope=scope, kid=kid),
        "revoked": lambda kid: revoke(tenant, kid),
    }
    foreign = SigningKey.objects.get(organization=tenant.other_organization).kid
    for word, attempt in attempts.items():
        with pytest.raises(Conflict, match=f"can't be {word}: rotate first") as refused:
            attempt(first.kid)
        assert refused.value.code == "last_active_key"
        for unknown in ("k_unknown", foreign):
            with pytest.raises(NotFound):
                attempt(unknown)
    rotate(tenant)
    assert services.retire(scope=scope, kid=first.kid).status == "retired"


# --- use of keys ---


def test_documents_are_signed_by_the_active_key_and_finished_by_the_one_that_began(tenant: Tenant) -> None:
    org, first = tenant.organization.pk, active(tenant)
    signer, version = services.active_signer_and_version(org)
    assert (signer.kid, version, services.key_set_version(org)) == (first.kid, 1, 1)
    assert signer.private_raw == services.signer_for(org, first.kid).private_raw
    assert trust.public_key(signer.private_raw) == bytes(first.public_key)
    second = rotate(tenant)
    assert services.active_signer(org).kid == second.kid
    assert services.signer_for(org, first.kid).kid == first.kid
    revoke(tenant, first.kid)
    for organization_id, kid in ((org, first.kid), (org, "k_unknown"), (tenant.other_organization.pk, second.kid)):
        with pytest.raises(Conflict) as refused:
            services.signer_for(organization_id, kid)
        assert refused.value.code == "signing_key_revoked"
    assert services.key_set_version(new_id()) == 0
    with pytest.raises(Conflict) as none:
        services.active_signer(new_id())
    assert none.value.code == "no_active_key"


def test_every_key_is_named_with_its_status(tenant: Tenant) -> None:
    org, first = tenant.organization.pk, active(tenant).kid
    second = rotate(tenant).kid
    third = rotate(tenant).kid
    for kid in (second, first):
        revoke(tenant, kid)
    assert {kid: key.status for kid, key in services.trusted_keys(org).items()} == {
        first: "revoked",
        second: "revoked",
        third: "active",
    }


def test_the_open_key_is_kept_for_a_minute_and_while_the_version_stays(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    org, now = tenant.organization.pk, [1000.0]
    monkeypatch.setattr(key_use, "_signers", {})
    monkeypatch.setattr(key_use.time, "monotonic", lambda: now[0])
    opened: list[str] = []

    def counted(box: bytes, **more: Any) -> bytes:
        opened.append(more["kid"])
        return unseal(box, **more)

    monkeypatch.setattr(key_use, "unseal", counted)
    first = active(tenant).kid
    for _ in range(2):
        signer, version = services.signer_at(org, 1)
        assert (signer.kid, version) == (first, 1)
    now[0] += key_use.SIGNER_KEPT_SECONDS - 0.1
    services.signer_at(org, 1)
    assert opened == [first]
    now[0] += 0.1
    services.signer_at(org, 1)
    assert opened == [first, first]
    second = rotate(tenant).kid
    opened.clear()
    signer, version = services.signer_at(org, 2)
    assert (signer.kid, version, opened) == (second, 2, [second])
    # it is one organization's
    other = services.signer_at(tenant.other_organization.pk, 1)[0]
    assert other.kid not in (first, second)
    monkeypatch.setattr(key_use, "_MOST_SIGNERS", 2)
    rotate(tenant)
    services.signer_at(org, 3)
    assert set(key_use._signers) == {org}, "all are forgotten when there are too many"


def test_key_sets_are_given_from_the_one_that_is_known(tenant: Tenant) -> None:
    org = tenant.organization.pk
    rotate(tenant)
    rotate(tenant)
    envelopes = [row.envelope for row in KeySetVersion.objects.filter(organization=org).order_by("version")]
    newest = trust.accept_keyset(None, envelopes[-1:])
    keys = [key.as_dict() for key in newest.keys]
    for after, given in ((0, envelopes), (1, envelopes[1:]), (2, envelopes[2:]), (3, []), (9, [])):
        assert services.key_set(org, after=after) == {"version": 3, "keys": keys, "envelopes": given}
    assert services.key_set(org) == services.key_set(org, after=0)
    assert services.enrollment_key_set(org) == {"version": 3, "keys": keys, "envelopes": envelopes[-1:]}
    nothing = {"version": 0, "keys": [], "envelopes": []}
    assert services.key_set(new_id()) == services.enrollment_key_set(new_id()) == nothing


# --- private parts at rest ---


def test_a_sealed_key_opens_for_its_organization_and_id_only(settings: Any) -> None:
    settings.BYTEOR_KEY_ENCRYPTION_KEYS = [("one", b"1" * 32), ("two", b"2" * 32)]
    private, org = trust.generate_private_key(), new_id()
    name, box = seal(private, organization_id=org, kid="k")
    assert name == "one"
    assert seal(private, organization_id=org, kid="k")[1] != box
    assert unseal(box, wrapped_by="one", organization_id=org, kid="k") == private
    for wrong in (
        {"wrapped_by": "two"},
        {"organization_id": new_id()},
        {"kid": "k2"},
        {"box": box[:-1] + bytes([box[-1] ^ 1])},
        {"box": b""},
    ):
        given: dict[str, Any] = {"box": box, "wrapped_by": "one", "organization_id": org, "kid": "k", **wrong}
        with pytest.raises(VaultError) as error:
            unseal(given.pop("box"), **given)
        assert error.value.code == "private_key_damaged"
    with pytest.raises(VaultError) as missing:
        unseal(box, wrapped_by="three", organization_id=org, kid="k")
    assert missing.value.code == "key_encryption_key_missing"
    assert "'three'" in missing.value.detail


def test_private_parts_are_moved_to_the_first_key_unless_they_do_not_open(tenant: Tenant, settings: Any) -> None:
    first = active(tenant)
    second = rotate(tenant)
    third = rotate(tenant)
    revoke(tenant, first.kid)
    [(name, key)] = settings.BYTEOR_KEY_ENCRYPTION_KEYS
    other = SigningKey.objects.get(organization=tenant.other_organization)
    SigningKey.objects.filter(pk=second.pk).update(private_box=b"damaged")
    settings.BYTEOR_KEY_ENCRYPTION_KEYS = [("new", b"n" * 32), (name, key)]
    tried = reencrypt(dry_run=True)
    assert (tried.moved, list(tried.unreadable)) == ({name: 2}, [second.kid])
    assert SigningKey.objects.get(pk=third.pk).wrapped_by == name
    done = reencrypt()
    assert done == tried
    assert second.kid in done.unreadable[second.kid]
    rows = {row.pk: row.wrapped_by for row in SigningKey.objects.all()}
    assert rows == {first.pk: "", second.pk: name, third.pk: "new", other.pk: "new"}
    assert reencrypt().moved == {}
    assert missing_encryption_keys() == {}
    settings.BYTEOR_KEY_ENCRYPTION_KEYS = [("new", b"n" * 32)]
    assert missing_encryption_keys() == {name: 1}
    assert services.active_signer(tenant.organization.pk).kid == third.kid
