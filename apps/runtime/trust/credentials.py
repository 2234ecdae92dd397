"""Approval credentials: what was approved, signed, and checked offline."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import rfc8785

from apps.runtime.trust.envelopes import field, load_canonical
from apps.runtime.trust.keys import KeySet, Signer, TrustedKey, TrustError, verifies


def targets_sha256(agent_ids: Iterable[str]) -> str:
    """SHA-256 (hex) of the RFC 8785 form of the sorted agent ids."""
    return hashlib.sha256(rfc8785.dumps(sorted(str(a) for a in agent_ids))).hexdigest()


@dataclass(frozen=True, slots=True)
class CredentialClaims:
    """The claims of an approval credential. `capabilities`, `issued_by` are lists of text; times are Unix ms."""

    kid: str
    org_id: str
    project_id: str
    environment_id: str
    environment_posture: str
    spec_hash: str
    capabilities: tuple[str, ...]
    issued_at: int
    expires_at: int
    issued_by: tuple[str, ...]
    approval_id: str
    config_hash: str
    subject: str
    targets_sha256: str
    v: int = 1

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "capabilities": list(self.capabilities), "issued_by": list(self.issued_by)}


def _b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def mint_credential(claims: CredentialClaims, signer: Signer) -> str:
    """`<payload b64url>.<signature b64url>`; the signature is over the payload's bytes. `claims.kid` must be the signer's."""
    if claims.kid != signer.kid:
        raise ValueError("the claims name another key")
    payload = rfc8785.dumps(claims.as_dict())
    return f"{_b64url(payload)}.{_b64url(signer.sign(payload))}"


def _undecodable(why: str) -> NoReturn:
    raise TrustError("credential_undecodable", why)


def _from_b64url(text: str) -> bytes:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        _undecodable("the credential is not base64url")
    if _b64url(raw) != text:
        _undecodable("the credential is not canonical base64url")
    return raw


_TEXT_CLAIMS = (
    "kid", "org_id", "project_id", "environment_id", "environment_posture", "spec_hash", "approval_id", "config_hash",
    "subject", "targets_sha256",
)  # fmt: skip


def decode_credential(token: str) -> tuple[CredentialClaims | None, dict[str, Any], bytes, bytes]:
    """(claims or None when `v` is not 1, raw payload object, payload bytes, signature), nothing verified.

    Raises `credential_undecodable`.
    """
    parts = token.split(".") if isinstance(token, str) and len(token) <= 65536 else []
    if len(parts) != 2:
        _undecodable("a credential is two base64url parts")
    payload, signature = _from_b64url(parts[0]), _from_b64url(parts[1])
    value = load_canonical(payload, "credential_undecodable", "the credential's payload")
    if not isinstance(value.get("kid"), str):
        _undecodable("kid is missing")
    if value.get("v") != 1 or isinstance(value.get("v"), bool):
        return None, value, payload, signature
    if set(value) != set(CredentialClaims.__dataclass_fields__):
        _undecodable("the credential's fields are not the known ones")
    for name in _TEXT_CLAIMS:
        field(value, name, str, "credential_undecodable")
    for name in ("issued_at", "expires_at"):
        field(value, name, int, "credential_undecodable")
    for name in ("capabilities", "issued_by"):
        items = field(value, name, list, "credential_undecodable")
        if not all(isinstance(item, str) for item in items):
            _undecodable(f"{name} is not a list of text")
    body = {**value, "capabilities": tuple(value["capabilities"]), "issued_by": tuple(value["issued_by"])}
    return CredentialClaims(**body), value, payload, signature


def verify_credential(
    token: str,
    *,
    keys: KeySet | Mapping[str, TrustedKey],
    spec_hash: str,
    environment_id: str,
    posture: str,
    at_ms: int,
    capabilities: Iterable[str],
    config_hash: str,
    subject: str,
    expected_targets_sha256: str | None = None,
    org_id: str | None = None,
    project_id: str | None = None,
) -> CredentialClaims:
    """The claims of a credential that covers exactly this at the moment `at_ms`.

    Refuses in this order: `credential_undecodable`, `credential_bad_signature`, `credential_unknown_version`,
    `credential_wrong_spec`, `credential_wrong_environment` (or posture), `credential_expired` (also before
    `issued_at`), `credential_missing_capability`, `credential_wrong_config`, `credential_wrong_subject`,
    `credential_by_retired_key` (issued after its key was retired, by more than the clock skew).
    """
    claims, raw, payload, signature = decode_credential(token)
    trusted = keys.by_kid() if isinstance(keys, KeySet) else keys
    key = trusted.get(raw["kid"])
    if key is None or not verifies(key, signature, payload):
        raise TrustError("credential_bad_signature", "the credential's signature does not verify")
    if claims is None:
        raise TrustError("credential_unknown_version", "the credential's version is unknown")
    if claims.spec_hash != spec_hash:
        raise TrustError("credential_wrong_spec", "the credential is for another spec")
    if claims.environment_id != environment_id or claims.environment_posture != posture:
        raise TrustError("credential_wrong_environment", "the credential is for another environment or posture")
    if (org_id is not None and claims.org_id != org_id) or (project_id is not None and claims.project_id != project_id):
        raise TrustError("credential_wrong_environment", "the credential is for another organization or project")
    if not claims.issued_at <= at_ms <= claims.expires_at:
        raise TrustError("credential_expired", "the credential is not valid at that time")
    missing = sorted(set(capabilities) - set(claims.capabilities))
    if missing:
        raise TrustError("credential_missing_capability", f"the credential does not allow {', '.join(missing)}")
    if claims.config_hash != config_hash:
        raise TrustError("credential_wrong_config", "the credential is for another configuration")
    if claims.subject != subject or expected_targets_sha256 not in (None, claims.targets_sha256):
        raise TrustError("credential_wrong_subject", "the credential is for another subject")
    if key.signed_too_late(claims.issued_at):
        raise TrustError("credential_by_retired_key", "the credential was issued after its key was retired")
    return claims
