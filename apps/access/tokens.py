"""Format of tokens: family prefix, 43 base62 characters of 256 random bits, 6 base62 characters of CRC32."""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass

from apps.core.errors import Unauthenticated
from apps.core.secrets import Secret

FAMILIES = ("pat", "org", "enr", "agt")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SHAPE = re.compile(r"\Abyt_(pat|org|enr|agt)_([0-9A-Za-z]{43})([0-9A-Za-z]{6})\Z")


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


@dataclass(frozen=True, slots=True)
class MintedToken:
    """A new token. `text` is shown once; `sha256` (hex) and `public_id` are stored."""

    text: Secret
    prefix: str
    public_id: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ParsedToken:
    """A token with a valid format and checksum. The app of its family looks it up."""

    family: str
    sha256: str
    public_id: str


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _checksum(head: str) -> str:
    return _base62(zlib.crc32(head.encode("ascii")), 6)


def mint(family: str) -> MintedToken:
    """Create a token of `family` (`pat`, `org`, `enr`, `agt`)."""
    if family not in FAMILIES:
        raise ValueError(f"unknown token family {family!r}")
    head = f"byt_{family}_{_base62(secrets.randbits(256), 43)}"
    text = head + _checksum(head)
    digest = _digest(text)
    return MintedToken(Secret(text), f"byt_{family}_", _public_id(family, digest), digest)


def _public_id(family: str, digest: str) -> str:
    return f"{family}_{digest[:12]}"


def parse(text: str) -> ParsedToken:
    """Parse a token. Raises Unauthenticated `malformed_token` for a wrong format or checksum, without any query."""
    match = _SHAPE.match(text)
    if match is None or _checksum(text[:-6]) != match.group(3):
        raise Unauthenticated("This is not a token, or it contains a typo.", code="malformed_token")
    digest = _digest(text)
    return ParsedToken(match.group(1), digest, _public_id(match.group(1), digest))
