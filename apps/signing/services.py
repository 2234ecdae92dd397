"""Making keys and signing with them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.errors import Conflict
from apps.runtime import trust
from apps.signing.models import KeySetVersion, KeyStatus, SigningKey
from apps.signing.vault import seal, unseal
from apps.tenancy.models import Organization

VERSION_ONE = 1


def make_first_key(*, actor: ActorRef, node: Any) -> None:
    """A new organization's first signing key, and version 1 of its key set, which signs itself. In its transaction."""
    organization: Organization = node
    now = clock.now()
    private = trust.generate_private_key()
    public = trust.public_key(private)
    kid = trust.kid_of(public)
    name, box = seal(private, organization_id=organization.pk, kid=kid)
    row = SigningKey.objects.create(
        organization=organization,
        kid=kid,
        public_key=public,
        private_box=box,
        wrapped_by=name,
        not_before=now.replace(microsecond=now.microsecond // 1000 * 1000),
    )
    payload = trust.make_keyset_payload(
        org_id=str(organization.pk), version=VERSION_ONE, keys=[_trusted(row)], issued_at=clock.to_ms(now)
    )
    envelope = trust.sign_envelope(payload, trust.PAYLOAD_KEYSET, [trust.Signer(kid, private)])
    KeySetVersion.objects.create(organization=organization, version=VERSION_ONE, envelope=envelope)
    audit.record(
        organization_id=organization.pk,
        action="signing_key.created",
        actor=actor,
        target=f"signing_key:{kid}",
        scope={"organization_id": organization.pk},
        details={"kid": kid, "key_set_version": VERSION_ONE},
    )


def _trusted(row: SigningKey) -> trust.TrustedKey:
    return trust.TrustedKey(
        kid=row.kid,
        public=bytes(row.public_key),
        status=row.status,
        not_before=clock.to_ms(row.not_before),
        not_after=clock.to_ms(row.not_after) if row.not_after else None,
    )


def _open(row: SigningKey) -> trust.Signer:
    private = unseal(
        bytes(row.private_box), wrapped_by=row.wrapped_by, organization_id=row.organization_id, kid=row.kid
    )
    return trust.Signer(row.kid, private)


def active_signer(organization_id: uuid.UUID) -> trust.Signer:
    """The organization's active key, ready to sign. Conflict `no_active_key` when there is none; VaultError."""
    row = SigningKey.objects.filter(organization_id=organization_id, status=KeyStatus.ACTIVE).order_by("-pk").first()
    if row is None:
        raise Conflict("The organization has no active signing key.", code="no_active_key")
    return _open(row)


def signer_for(organization_id: uuid.UUID, kid: str) -> trust.Signer:
    """The key `kid`, to finish what it began to sign. Conflict `signing_key_revoked` when it was revoked or is gone."""
    rows = SigningKey.objects.filter(organization_id=organization_id, kid=kid).exclude(status=KeyStatus.REVOKED)
    row = rows.first()
    if row is None:
        raise Conflict("The signing key was revoked.", code="signing_key_revoked")
    return _open(row)


def trusted_keys(organization_id: uuid.UUID) -> Mapping[str, trust.TrustedKey]:
    """Every key of the organization by kid, with its status, for verifying."""
    return {row.kid: _trusted(row) for row in SigningKey.objects.filter(organization_id=organization_id)}


def key_set_version(organization_id: uuid.UUID) -> int:
    """The newest version of the organization's key set; 0 when it has none."""
    newest = KeySetVersion.objects.filter(organization_id=organization_id).order_by("-version").first()
    return newest.version if newest else 0


def key_document(row: SigningKey) -> dict[str, object]:
    """A key as the API shows it."""
    return {
        **_trusted(row).as_dict(),
        "public_key_pem": trust.public_key_pem(bytes(row.public_key)),
        "not_before": clock.rfc3339(row.not_before),
        "not_after": clock.rfc3339(row.not_after),
    }


def key_set(organization_id: uuid.UUID, *, after: int = 0) -> dict[str, object]:
    """`{version, keys, envelopes}`: the keys of the newest version, and every envelope above `after`, oldest first."""
    rows = list(KeySetVersion.objects.filter(organization_id=organization_id).order_by("version"))
    keys = SigningKey.objects.filter(organization_id=organization_id).order_by("kid")
    return {
        "version": rows[-1].version if rows else 0,
        "keys": [_trusted(row).as_dict() for row in keys],
        "envelopes": [row.envelope for row in rows if row.version > after],
    }
