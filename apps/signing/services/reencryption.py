"""Bringing private keys under the present key-encryption key: resumable, repeatable, beside running processes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from apps.signing.models import KeyStatus, SigningKey
from apps.signing.vault import VaultError, seal, unseal

BATCH = 200


@dataclass(frozen=True, slots=True)
class Reencrypted:
    """How many keys were brought under the primary key, by the id that they were under, and {kid: why} for those that do not open."""

    moved: dict[str, int]
    unreadable: dict[str, str]


def primary_id() -> str:
    """The id of the key-encryption key that new and re-encrypted keys are under."""
    ring = settings.BYTEOR_KEY_ENCRYPTION_KEYS
    if not ring:
        raise ImproperlyConfigured("there is no key-encryption key")
    return str(ring[0][0])


def reencrypt(*, dry_run: bool = False) -> Reencrypted:
    """Seal every private key that is not under the primary key-encryption key anew, a row at a time.

    Each row is one guarded UPDATE, so it may be stopped anywhere, run again, and run beside itself and beside everything
    that signs. A row that does not open is left as it is and named.
    """
    moved: Counter[str] = Counter()
    unreadable: dict[str, str] = {}
    here = primary_id()
    waiting = SigningKey.objects.exclude(status=KeyStatus.REVOKED).exclude(wrapped_by=here).order_by("pk")
    last = None
    while batch := list((waiting.filter(pk__gt=last) if last else waiting)[:BATCH]):
        for row in batch:
            bound = {"organization_id": row.organization_id, "kid": row.kid}
            try:
                private = unseal(bytes(row.private_box), wrapped_by=row.wrapped_by, **bound)
            except VaultError as error:
                unreadable[row.kid] = error.detail
                continue
            if dry_run:
                moved[row.wrapped_by] += 1
                continue
            name, box = seal(private, **bound)
            same = SigningKey.objects.filter(pk=row.pk, wrapped_by=row.wrapped_by).exclude(status=KeyStatus.REVOKED)
            if same.update(wrapped_by=name, private_box=box):
                moved[row.wrapped_by] += 1
        last = batch[-1].pk
    return Reencrypted(dict(moved), unreadable)


def missing_encryption_keys() -> dict[str, int]:
    """{id of a key-encryption key that is not configured: how many private keys are under it}."""
    ring = [name for name, _ in settings.BYTEOR_KEY_ENCRYPTION_KEYS]
    rows = SigningKey.objects.exclude(status=KeyStatus.REVOKED).exclude(wrapped_by__in=ring)
    return dict(Counter(rows.values_list("wrapped_by", flat=True)))
