"""Making keys, taking them out of use, and signing with them."""

from apps.signing.services.lifecycle import REASON_LENGTH, make_first_key, retire, revoke, rotate
from apps.signing.services.reading import (
    active_signer,
    enrollment_key_set,
    key_document,
    key_set,
    key_set_version,
    require_unrevoked,
    revoked_kids,
    signer_for,
    trusted_keys,
)
from apps.signing.services.reencryption import Reencrypted, missing_encryption_keys, primary_id, reencrypt

__all__ = [
    "REASON_LENGTH",
    "Reencrypted",
    "active_signer",
    "enrollment_key_set",
    "key_document",
    "key_set",
    "key_set_version",
    "make_first_key",
    "missing_encryption_keys",
    "primary_id",
    "reencrypt",
    "require_unrevoked",
    "retire",
    "revoke",
    "revoked_kids",
    "rotate",
    "signer_for",
    "trusted_keys",
]
