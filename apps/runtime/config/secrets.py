"""Finds values that look like secrets, which have no place in a config that is stored, shown and signed."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise

_TOKENS = re.compile(
    r"byt_(?:pat|org|enr|agt)_|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[oprsu]_[A-Za-z0-9]{20,}|\bgithub_pat_|\bglpat-"
    r"|\bxox[abeoprs]-|\b[rs]k_(?:live|test)_|\bsk-[A-Za-z0-9_-]{20,}|\bAIza[0-9A-Za-z_-]{30,}|\bnpm_[A-Za-z0-9]{30,}"
    r"|\bpypi-[A-Za-z0-9_-]{16,}|\bSG\.[A-Za-z0-9_-]{16,}|\bhvs\.[A-Za-z0-9_-]{16,}|\bdop_v1_|\bshp(?:at|ss|ca)_"
)
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")
_JWT = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")
_USERINFO = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@", re.IGNORECASE)
_HEADER = re.compile(r"\b(?:bearer|basic)\s+[A-Za-z0-9+/=._~-]{16,}", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z0-9+/_=-]{20,}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_HEX = re.compile(r"[0-9a-fA-F]{32,}")
_DIGEST = re.compile(r"sha(?:1|256|384|512)[:-][A-Za-z0-9+/=]+", re.IGNORECASE)

_NAME_PARTS = ("PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "APIKEY")
_NAME_WORDS = {"TOKEN", "PWD", "CREDENTIAL", "CREDENTIALS"}
_KEY_BEFORE = {"API", "ACCESS", "PRIVATE", "SIGNING", "ENCRYPTION", "AUTH"}
_HARMLESS_LAST = {
    "FILE",
    "PATH",
    "DIR",
    "NAME",
    "TTL",
    "SECONDS",
    "LIMIT",
    "COUNT",
    "ENABLED",
    "FIELD",
    "HEADER",
}


def secret_name(name: str) -> bool:
    """Whether a setting called `name` is one that holds a secret (DB_PASSWORD, API_KEY, but not TOKEN_TTL)."""
    words = [word for word in re.split(r"[_.-]+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).upper()) if word]
    if not words or words[-1] in _HARMLESS_LAST:
        return False
    if any(part in word for part in _NAME_PARTS for word in words) or _NAME_WORDS.intersection(words):
        return True
    return any(first in _KEY_BEFORE and second == "KEY" for first, second in pairwise(words))


def secret_value(value: str) -> str | None:
    """Why `value` looks like a secret; None when it does not. The answer does not repeat the value."""
    if _TOKENS.search(value):
        return "it has the form of a known kind of token"
    if _PEM.search(value):
        return "it holds a private key"
    if _JWT.search(value):
        return "it holds a JSON web token"
    if _USERINFO.search(value):
        return "it is an address with a password in it"
    if _HEADER.search(value):
        return "it holds an authorization header"
    for match in _WORD.finditer(_DIGEST.sub(" ", _UUID.sub(" ", value))):
        if _is_random(match.group()):
            return "it holds a long random string"
    return None


def _is_random(word: str) -> bool:
    """Long runs without structure: hex of 32 and more, or mixed letters and digits of high entropy."""
    bits = _entropy(word)
    if _HEX.fullmatch(word):
        return bits > 2.5
    if all(
        part.isdigit() or (part.isalpha() and part in (part.lower(), part.upper()))
        for part in re.split("[-_/+=]+", word)
        if part
    ):
        return False  # eu-central-1-prod: words and numbers, each in one piece
    kinds = sum(bool(re.search(kind, word)) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
    changes = sum(_kind(a) != _kind(b) for a, b in pairwise(word))
    return kinds >= 2 and bits > 3.7 and changes * 3 > len(word)


def _kind(char: str) -> str:
    return "d" if char.isdigit() else "u" if char.isupper() else "l" if char.islower() else "s"


def _entropy(word: str) -> float:
    """Shannon entropy in bits a character."""
    return -sum(n / len(word) * math.log2(n / len(word)) for n in Counter(word).values())
