"""Re-encrypts private keys under the primary key-encryption key. Resumable, repeatable, safe while other processes run."""

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
    """Number of re-encrypted keys by former key-encryption key, and {kid: problem} for keys that can't be decrypted."""

    moved: dict[str, int]
    unreadable: dict[str, str]


def primary_id() -> str:
    """Return the id of the key-encryption key for new and re-encrypted keys."""
    ring = settings.BYTEOR_KEY_ENCRYPTION_KEYS
    if not ring:
        raise ImproperlyConfigured("there is no key-encryption key")
    return str(ring[0][0])


def reencrypt(*, dry_run: bool = False) -> Reencrypted:
    """Re-encrypt every private key that is not under the primary key-encryption key, one row at a time.

    Each row is one guarded UPDATE: the run can be stopped, repeated, and run next to another one and to signing
    processes. A row that can't be decrypted is left unchanged and reported.
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
    """Count the private keys per key-encryption key that is not configured, by the id of that key."""
    ring = [name for name, _ in settings.BYTEOR_KEY_ENCRYPTION_KEYS]
    rows = SigningKey.objects.exclude(status=KeyStatus.REVOKED).exclude(wrapped_by__in=ring)
    return dict(Counter(rows.values_list("wrapped_by", flat=True)))
