"""The readiness check of key-encryption keys."""

from __future__ import annotations

from django.db import DatabaseError

from apps.audit import services as audit
from apps.core.readiness import NotReady
from apps.signing.services import missing_encryption_keys

SETTING = "BYTEOR_CLOUD_KEY_ENCRYPTION_KEYS"


def encryption_keys() -> None:
    """Check that every key-encryption key that rows name is configured. Raises NotReady."""
    try:
        missing = missing_encryption_keys()
        heads = audit.missing_mac_keys()
    except DatabaseError as error:
        raise NotReady("the database is unavailable") from error
    problems = [f"'{name}' (encrypts {count} signing keys)" for name, count in sorted(missing.items())]
    problems += [f"'{name}' (authenticates {count} audit chains)" for name, count in sorted(heads.items())]
    if problems:
        raise NotReady(f"{SETTING} lacks {', '.join(problems)}")
