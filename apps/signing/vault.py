"""Encryption of private keys at rest: AES-256-GCM under a key from the environment, bound to the organization and the
kid."""

from __future__ import annotations

import os

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings

from apps.core.errors import Unavailable

NONCE_BYTES = 12

log = structlog.get_logger(__name__)


class VaultError(Unavailable):
    """A private key can't be decrypted: `key_encryption_key_missing`, or `private_key_damaged` if the row was tampered
    with."""

    code = "key_encryption_key_missing"


def _bound_to(organization_id: object, kid: str) -> bytes:
    return f"byteor-signing-key:{organization_id}:{kid}".encode()


def seal(private_raw: bytes, *, organization_id: object, kid: str) -> tuple[str, bytes]:
    """Encrypt under the primary key. Returns (id of the key-encryption key, nonce and ciphertext)."""
    name, key = settings.BYTEOR_KEY_ENCRYPTION_KEYS[0]
    nonce = os.urandom(NONCE_BYTES)
    return name, nonce + AESGCM(key).encrypt(nonce, private_raw, _bound_to(organization_id, kid))


def unseal(box: bytes, *, wrapped_by: str, organization_id: object, kid: str) -> bytes:
    """Decrypt the private key in `box`. Raises VaultError."""
    ring = dict(settings.BYTEOR_KEY_ENCRYPTION_KEYS)
    if wrapped_by not in ring:
        log.error("key-encryption key missing", key_encryption_key=wrapped_by, kid=kid)
        raise VaultError(f"The key-encryption key '{wrapped_by}', which encrypts {kid}, is not configured.")
    try:
        return AESGCM(ring[wrapped_by]).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], _bound_to(organization_id, kid))
    except (InvalidTag, ValueError):
        log.error("private key can't be decrypted", key_encryption_key=wrapped_by, kid=kid)
        raise VaultError(
            f"The private key {kid} can't be decrypted with the key-encryption key '{wrapped_by}'.",
            code="private_key_damaged",
        ) from None
