"""Changing the key-encryption key keeps every signing key usable, and the former key can be removed afterwards."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from apps.audit import services as audit
from apps.audit.models import ChainHead
from apps.core import readiness
from apps.signing import services
from apps.signing.models import SigningKey
from apps.signing.services import reencryption
from byteor.config import Config, load
from tests.support import Tenant

pytestmark = pytest.mark.django_db

NEW = ("new", b"n" * 32)


@pytest.fixture
def ring(settings: Any) -> Any:
    """`ring(*keys)` sets the configured keys, for signing keys and audit chains, as the settings derive them."""
    config = load()

    def use(*keys: tuple[str, bytes]) -> None:
        changed = Config(**{**config.__dict__, "key_encryption_keys": list(keys)})
        settings.BYTEOR_KEY_ENCRYPTION_KEYS = changed.key_encryption_keys
        settings.BYTEOR_AUDIT_MAC_KEYS = changed.derived_keys("audit-chain-head")

    use.old = config.key_encryption_keys[0]  # type: ignore[attr-defined]
    return use


def command(*arguments: str) -> dict[str, Any]:
    from io import StringIO

    out = StringIO()
    call_command("reencrypt_keys", "--json", *arguments, stdout=out)
    return dict(json.loads(out.getvalue()))


def ready() -> tuple[int, str | None]:
    readiness.run_checks()
    answer = Client().get("/readyz")
    return answer.status_code, answer.json()["checks"]["key_encryption_keys"]


def test_the_ring_is_turned_without_a_moment_in_which_something_does_not_open(tenant: Tenant, ring: Any) -> None:
    signer = services.active_signer(tenant.organization.pk)
    ring(ring.old, NEW)
    assert services.active_signer(tenant.organization.pk) == signer
    ring(NEW, ring.old)
    assert services.active_signer(tenant.organization.pk) == signer
    assert command("--dry-run")["signing_keys"] == {ring.old[0]: 2}
    assert set(SigningKey.objects.values_list("wrapped_by", flat=True)) == {ring.old[0]}
    heads = ChainHead.objects.count()
    done = command()
    assert (done["primary"], done["signing_keys"], done["audit_chains"]) == ("new", {ring.old[0]: 2}, heads)
    again = command()
    assert (again["signing_keys"], again["audit_chains"]) == ({}, 0)
    ring(NEW)
    assert services.active_signer(tenant.organization.pk) == signer
    assert audit.verify(tenant.organization.pk).ok
    assert ready()[1] is None


def test_an_audit_chain_is_proved_by_any_key_of_the_ring_and_its_next_head_is_under_the_primary(
    tenant: Tenant, ring: Any
) -> None:
    organization = tenant.organization.pk
    assert audit.verify(organization).ok
    ring(NEW, ring.old)
    assert audit.verify(organization).ok, "made under the former key"
    tenant.caller("alice").post(f"/orgs/{organization}/signing-keys", {})
    assert ChainHead.objects.get(pk=str(organization)).mac_key == "new"
    ring(NEW)
    assert audit.verify(organization).ok
    ring(("stranger", b"s" * 32))
    broken = audit.verify(organization)
    assert (broken.ok, broken.problem) == (
        False,
        "the head's MAC is under the key-encryption key 'new', which is not configured",
    )


def test_the_command_does_not_renew_the_mac_of_a_tampered_head(tenant: Tenant, ring: Any) -> None:
    chain = str(tenant.organization.pk)
    ChainHead.objects.filter(pk=chain).update(count=1)
    ring(NEW, ring.old)
    with pytest.raises(CommandError, match=f"Audit chain {chain}: the head's MAC does not verify"):
        command()
    assert not audit.verify(tenant.organization.pk).ok
    assert ChainHead.objects.get(pk=chain).mac_key == ring.old[0]


def test_a_ring_that_lacks_a_key_is_named_and_never_a_500(tenant: Tenant, ring: Any) -> None:
    ring(NEW)
    status, body = ready()
    assert body is not None
    assert status == 503
    assert f"'{ring.old[0]}' (encrypts 2 signing keys)" in body
    assert "audit chains" in body
    alice = tenant.caller("alice")
    answer = alice.post(f"/orgs/{tenant.organization.pk}/signing-keys", {})
    assert (answer.status_code, answer.json()["code"]) == (503, "key_encryption_key_missing")
    assert ring.old[0] in answer.json()["detail"]
    assert alice.get(f"/orgs/{tenant.organization.pk}/signing-keys").status_code == 200
    with pytest.raises(CommandError, match="is not configured"):
        command()
    # the chain that got an event meanwhile is under the new key, which is reported too
    ring(ring.old)
    assert "lacks 'new'" in (ready()[1] or "")
    ring(ring.old, NEW)
    assert ready()[1] is None
    assert alice.post(f"/orgs/{tenant.organization.pk}/signing-keys", {}).status_code == 201


def test_an_interrupted_run_continues_where_it_stopped(
    tenant: Tenant, ring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring(NEW, ring.old)
    original, calls = reencryption.seal, []

    def once(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(reencryption, "seal", once)
    with pytest.raises(KeyboardInterrupt):
        services.reencrypt()
    assert sorted(SigningKey.objects.values_list("wrapped_by", flat=True)) == sorted(["new", ring.old[0]])
    assert services.reencrypt().moved == {ring.old[0]: 1}


def test_a_key_revoked_while_it_is_being_moved_stays_without_its_private_part(
    tenant: Tenant, ring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, path = tenant.caller("alice"), f"/orgs/{tenant.organization.pk}/signing-keys"
    former = SigningKey.objects.get(organization=tenant.organization).kid
    ring(ring.old, NEW)
    alice.post(path, {})
    ring(NEW, ring.old)
    original = reencryption.seal

    def meanwhile(private: bytes, **bound: Any) -> Any:
        if bound["kid"] == former:
            assert alice.post(f"{path}/{former}/revoke", {}).status_code == 200
        return original(private, **bound)

    monkeypatch.setattr(reencryption, "seal", meanwhile)
    services.reencrypt()
    row = SigningKey.objects.get(kid=former)
    assert (row.status, bytes(row.private_box), row.wrapped_by) == ("revoked", b"", "")
