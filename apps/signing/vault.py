"""Private keys at rest: AES-256-GCM under a key from the environment, bound to the organization and the kid."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings

NONCE_BYTES = 12


class VaultError(Exception):
    """A private key can't be opened: its key-encryption key is not configured, or the row was tampered with."""


def _bound_to(organization_id: object, kid: str) -> bytes:
    return f"byteor-signing-key:{organization_id}:{kid}".encode()


def seal(private_raw: bytes, *, organization_id: object, kid: str) -> tuple[str, bytes]:
    """(id of the key-encryption key, nonce and ciphertext) under the primary key."""
    name, key = settings.BYTEOR_KEY_ENCRYPTION_KEYS[0]
    nonce = os.urandom(NONCE_BYTES)
    return name, nonce + AESGCM(key).encrypt(nonce, private_raw, _bound_to(organization_id, kid))


def unseal(box: bytes, *, wrapped_by: str, organization_id: object, kid: str) -> bytes:
    """The private key in `box`. Raises VaultError."""
    ring = dict(settings.BYTEOR_KEY_ENCRYPTION_KEYS)
    if wrapped_by not in ring:
        raise VaultError(f"the key-encryption key '{wrapped_by}' is not configured")
    try:
        return AESGCM(ring[wrapped_by]).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], _bound_to(organization_id, kid))
    except InvalidTag:
        raise VaultError(f"the private key {kid} does not open under '{wrapped_by}'") from None
