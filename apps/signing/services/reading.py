"""Keys as others use them: to sign, to verify, to follow, to show."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

from apps.core import clock
from apps.core.errors import Conflict
from apps.runtime import trust
from apps.signing.models import KeySetVersion, KeyStatus, SigningKey
from apps.signing.vault import unseal

REVOKED = "signing_key_revoked"


def trusted(row: SigningKey) -> trust.TrustedKey:
    """A key's public part with its status, as key sets name it."""
    return trust.TrustedKey(
        kid=row.kid,
        public=bytes(row.public_key),
        status=str(row.status),
        not_before=clock.to_ms(row.not_before),
        not_after=clock.to_ms(row.not_after) if row.not_after else None,
    )


def opened(row: SigningKey) -> trust.Signer:
    """The key, ready to sign. Raises VaultError."""
    private = unseal(
        bytes(row.private_box), wrapped_by=row.wrapped_by, organization_id=row.organization_id, kid=row.kid
    )
    return trust.Signer(row.kid, private)


def active_signer(organization_id: uuid.UUID) -> trust.Signer:
    """The organization's active key, ready to sign. Conflict `no_active_key` when there is none; VaultError."""
    row = SigningKey.objects.filter(organization_id=organization_id, status=KeyStatus.ACTIVE).first()
    if row is None:
        raise Conflict("The organization has no active signing key.", code="no_active_key")
    return opened(row)


def signer_for(organization_id: uuid.UUID, kid: str) -> trust.Signer:
    """The key `kid`, to finish what it began to sign. Conflict `signing_key_revoked` when it was revoked or is gone; VaultError."""
    rows = SigningKey.objects.filter(organization_id=organization_id, kid=kid).exclude(status=KeyStatus.REVOKED)
    row = rows.first()
    if row is None:
        raise Conflict("The signing key was revoked.", code=REVOKED)
    return opened(row)


def revoked_kids(organization_id: uuid.UUID, kids: Iterable[str]) -> set[str]:
    """Those of `kids` that were revoked."""
    rows = SigningKey.objects.filter(organization_id=organization_id, kid__in=set(kids), status=KeyStatus.REVOKED)
    return set(rows.values_list("kid", flat=True))


def require_unrevoked(organization_id: uuid.UUID, *kids: str) -> None:
    """Return when none of `kids` was revoked. Conflict `signing_key_revoked` otherwise."""
    gone = revoked_kids(organization_id, kids)
    if gone:
        raise Conflict(
            f"It was signed under {', '.join(sorted(gone))}, which was revoked. Deploy it again.",
            code=REVOKED,
            extra={"kids": sorted(gone)},
        )


def trusted_keys(organization_id: uuid.UUID) -> Mapping[str, trust.TrustedKey]:
    """Every key of the organization by kid, with its status, for verifying."""
    return {row.kid: trusted(row) for row in SigningKey.objects.filter(organization_id=organization_id)}


def key_set_version(organization_id: uuid.UUID) -> int:
    """The newest version of the organization's key set; 0 when it has none.

    It grows by one whenever a key is made or its status changes: as long as it stands still, the active signer does.
    One look into an index.
    """
    rows = KeySetVersion.objects.filter(organization_id=organization_id).order_by("-version")
    return rows.values_list("version", flat=True).first() or 0


def key_document(row: SigningKey) -> dict[str, object]:
    """A key as the API shows it."""
    return {
        **trusted(row).as_dict(),
        "public_key_pem": trust.public_key_pem(bytes(row.public_key)),
        "not_before": clock.rfc3339(row.not_before),
        "not_after": clock.rfc3339(row.not_after),
        "created_at": clock.rfc3339(row.created_at),
        "revoked_at": clock.rfc3339(row.revoked_at),
        "reason": row.reason,
    }


def _set_as_given(envelopes: list[KeySetVersion], newest: KeySetVersion | None) -> dict[str, object]:
    if newest is None:
        return {"version": 0, "keys": [], "envelopes": []}
    payload, _ = trust.envelope_payload(newest.envelope, trust.PAYLOAD_KEYSET)
    keys = trust.parse_keyset(payload).keys
    return {
        "version": newest.version,
        "keys": [key.as_dict() for key in keys],
        "envelopes": [row.envelope for row in envelopes],
    }


def key_set(organization_id: uuid.UUID, *, after: int = 0) -> dict[str, object]:
    """`{version, keys, envelopes}`: the keys of the newest version, and every envelope above `after`, oldest first."""
    rows = KeySetVersion.objects.filter(organization_id=organization_id)
    above = list(rows.filter(version__gt=after).order_by("version"))
    return _set_as_given(above, above[-1] if above else rows.order_by("-version").first())


def enrollment_key_set(organization_id: uuid.UUID) -> dict[str, object]:
    """The key set that a new agent is given to trust: its newest version alone, whose envelope a key in it signed.

    What came before says nothing to somebody who trusts none of it yet, and was signed by keys that may be revoked by now.
    """
    newest = KeySetVersion.objects.filter(organization_id=organization_id).order_by("-version").first()
    return _set_as_given([newest] if newest else [], newest)
