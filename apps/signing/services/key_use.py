"""Use of signing keys: sign, verify, publish, show."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping

from django.db.models import OuterRef, Subquery

from apps.core import clock
from apps.core.errors import Conflict
from apps.runtime import trust
from apps.signing.models import KeySetVersion, KeyStatus, SigningKey
from apps.signing.vault import unseal


def trusted(row: SigningKey) -> trust.TrustedKey:
    """Return the key's public part and status, as key sets list it."""
    return trust.TrustedKey(
        kid=row.kid,
        public=bytes(row.public_key),
        status=str(row.status),
        not_before=clock.to_ms(row.not_before),
        not_after=clock.to_ms(row.not_after) if row.not_after else None,
    )


def opened(row: SigningKey) -> trust.Signer:
    """Decrypt the key for signing. Raises VaultError."""
    private = unseal(
        bytes(row.private_box), wrapped_by=row.wrapped_by, organization_id=row.organization_id, kid=row.kid
    )
    return trust.Signer(row.kid, private)


def newest_version_of(organization: str) -> Subquery:
    """Subquery for another app's query: the newest key set version of the row's `organization` (a lookup to its id), or
    None."""
    rows = KeySetVersion.objects.filter(organization_id=OuterRef(organization))
    return Subquery(rows.order_by("-version").values("version")[:1])


def active_signer(organization_id: uuid.UUID) -> trust.Signer:
    """Return the organization's active key for signing. Raises Conflict `no_active_key` and VaultError."""
    return active_signer_and_version(organization_id)[0]


def active_signer_and_version(organization_id: uuid.UUID) -> tuple[trust.Signer, int]:
    """Return the organization's active key and its key set version, read in one query. Raises as `active_signer`."""
    keys = SigningKey.objects.filter(organization_id=organization_id, status=KeyStatus.ACTIVE)
    row = keys.values_list("kid", "private_box", "wrapped_by", newest_version_of("organization_id")).first()
    if row is None:
        raise Conflict("The organization has no active signing key.", code="no_active_key")
    kid, box, wrapped_by, version = row
    private = unseal(bytes(box), wrapped_by=wrapped_by, organization_id=organization_id, kid=kid)
    return trust.Signer(kid, private), version or 0


SIGNER_KEPT_SECONDS = 60.0
_MOST_SIGNERS = 10_000
_signers: dict[uuid.UUID, tuple[int, trust.Signer, float]] = {}


def signer_at(organization_id: uuid.UUID, version: int) -> tuple[trust.Signer, int]:
    """As `active_signer_and_version`, for a caller that has just read the key set's `version`.

    The active key does not change while the version stays the same, so the decrypted key is cached for a minute.
    """
    kept = _signers.get(organization_id)
    if kept is not None and kept[0] == version and time.monotonic() - kept[2] < SIGNER_KEPT_SECONDS:
        return kept[1], version
    signer, found = active_signer_and_version(organization_id)
    if len(_signers) >= _MOST_SIGNERS:
        _signers.clear()
    if found:
        _signers[organization_id] = found, signer, time.monotonic()
    return signer, found


def signer_for(organization_id: uuid.UUID, kid: str) -> trust.Signer:
    """Return the key `kid`, to finish a document that it began to sign.

    Raises Conflict `signing_key_revoked` if it was revoked or does not exist, and VaultError.
    """
    rows = SigningKey.objects.filter(organization_id=organization_id, kid=kid).exclude(status=KeyStatus.REVOKED)
    row = rows.first()
    if row is None:
        raise Conflict("The signing key was revoked.", code="signing_key_revoked")
    return opened(row)


def trusted_keys(organization_id: uuid.UUID) -> Mapping[str, trust.TrustedKey]:
    """Return every key of the organization by kid, with its status, for verification."""
    return {row.kid: trusted(row) for row in SigningKey.objects.filter(organization_id=organization_id)}


def key_set_version(organization_id: uuid.UUID) -> int:
    """Return the newest version of the organization's key set, or 0 if there is none.

    The version increases whenever a key is created or changes its status. While it is unchanged, so is the active key.
    One index lookup.
    """
    rows = KeySetVersion.objects.filter(organization_id=organization_id).order_by("-version")
    return rows.values_list("version", flat=True).first() or 0


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
    """Return `{version, keys, envelopes}`: the newest version's keys, and the envelopes of all versions above `after`,
    oldest first.
    """
    rows = KeySetVersion.objects.filter(organization_id=organization_id)
    above = list(rows.filter(version__gt=after).order_by("version"))
    return _set_as_given(above, above[-1] if above else rows.order_by("-version").first())


def enrollment_key_set(organization_id: uuid.UUID) -> dict[str, object]:
    """Return the key set that a new agent trusts: the newest version alone, whose envelope is signed by a key in it.

    Earlier versions prove nothing to an agent without a trusted set, and may be signed by keys that are revoked now.
    """
    newest = KeySetVersion.objects.filter(organization_id=organization_id).order_by("-version").first()
    return _set_as_given([newest] if newest else [], newest)
