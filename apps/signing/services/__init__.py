"""Create, retire, revoke and use signing keys.

- `lifecycle`: create, rotate, revoke; each publishes a key set
- `key_use`: sign and verify; `reencryption`: change the key-encryption key
"""

from apps.signing.services.key_use import (
    active_signer,
    active_signer_and_version,
    enrollment_key_set,
    key_set,
    key_set_version,
    newest_version_of,
    signer_at,
    signer_for,
    trusted,
    trusted_keys,
)
from apps.signing.services.lifecycle import REASON_LENGTH, make_first_key, retire, revoke, rotate
from apps.signing.services.reencryption import Reencrypted, missing_encryption_keys, primary_id, reencrypt

__all__ = [
    "REASON_LENGTH",
    "Reencrypted",
    "active_signer",
    "active_signer_and_version",
    "enrollment_key_set",
    "key_set",
    "key_set_version",
    "make_first_key",
    "missing_encryption_keys",
    "newest_version_of",
    "primary_id",
    "reencrypt",
    "retire",
    "revoke",
    "rotate",
    "signer_at",
    "signer_for",
    "trusted",
    "trusted_keys",
]
