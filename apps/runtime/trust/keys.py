"""Keys: made, named, and believed or not (Ed25519, RFC 8032)."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


class TrustError(Exception):
    """Something was not to be believed: a stable `code` and a sentence."""

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
