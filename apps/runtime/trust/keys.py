"""Keys: made, named, and trusted or not (Ed25519, RFC 8032)."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

CLOCK_SKEW_MS = 5 * 60 * 1000


class TrustError(Exception):
    """Something did not verify: a stable `code` and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


def generate_private_key() -> bytes:
    """A fresh Ed25519 private key as its 32 raw bytes."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    )


def public_key(private_raw: bytes) -> bytes:
    """The 32 raw public bytes of a private key."""
    return Ed25519PrivateKey.from_private_bytes(private_raw).public_key().public_bytes_raw()


def kid_of(public_raw: bytes) -> str:
    """The id of a key: `k_` and the first 32 hex digits of the SHA-256 of its raw public bytes."""
    return "k_" + hashlib.sha256(public_raw).hexdigest()[:32]


def public_key_pem(public_raw: bytes) -> str:
    """The key as a SubjectPublicKeyInfo PEM (RFC 8410), as openssl reads it."""
    key = Ed25519PublicKey.from_public_bytes(public_raw)
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


_FIELD = 2**255 - 19
# the y coordinates of the eight points whose order divides 8 (RFC 8032 §5.1.7 lets a signature by one of them verify for many
# messages), also in their non-canonical encodings
_ORDER_8_Y = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
_SMALL_ORDER_Y = frozenset({0, 1, _FIELD - 1, _FIELD, _FIELD + 1, _ORDER_8_Y, _FIELD - _ORDER_8_Y})


def is_weak(public_raw: bytes) -> bool:
    """Is this public key a point of small order, for which signatures can be made without a private key?"""
    return int.from_bytes(public_raw, "little") & (2**255 - 1) in _SMALL_ORDER_Y


@dataclass(frozen=True, slots=True)
class Signer:
    """A key that signs. Does not print its private part."""

    kid: str
    private_raw: bytes

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `data`."""
        return Ed25519PrivateKey.from_private_bytes(self.private_raw).sign(data)

    def __repr__(self) -> str:
        return f"Signer(kid={self.kid!r})"


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key (32 raw bytes) with its status: `active`, `retired` (still verifies) or `revoked` (verifies nothing)."""

    kid: str
    public: bytes
    status: str = "active"
    not_before: int | None = None
    not_after: int | None = None

    def signed_too_late(self, at_ms: int) -> bool:
        """Was the key known to be retired, beyond five minutes of clock skew, when it signed at `at_ms` (Unix ms)?"""
        return self.status == "retired" and self.not_after is not None and at_ms > self.not_after + CLOCK_SKEW_MS

    def as_dict(self) -> dict[str, Any]:
        return {
            "kid": self.kid,
            "algorithm": "ed25519",
            "public_key": base64.b64encode(self.public).decode(),
            "status": self.status,
            "not_before": self.not_before,
            "not_after": self.not_after,
        }


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of one organization at one version."""

    org_id: str
    version: int
    keys: tuple[TrustedKey, ...]

    def by_kid(self) -> dict[str, TrustedKey]:
        return {key.kid: key for key in self.keys}


def verifies(key: TrustedKey, signature: bytes, data: bytes) -> bool:
    if key.status == "revoked":
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
