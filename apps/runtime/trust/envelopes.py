"""DSSE v1 envelopes, and JSON that is read strictly: in the one form in which it is signed (RFC 8785)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

import rfc8785

from apps.runtime.trust.keys import KeySet, Signer, TrustedKey, TrustError, verifies

MAX_ENVELOPE_BYTES = 1024 * 1024
MAX_SIGNATURES = 16


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE v1 pre-authentication encoding: what is really signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign_envelope(payload: bytes, payload_type: str, signers: Sequence[Signer]) -> dict[str, Any]:
    """A DSSE envelope (JSON shape) over `payload`, with one signature for each signer."""
    data = pae(payload_type, payload)
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": s.kid, "sig": base64.b64encode(s.sign(data)).decode()} for s in signers],
    }


def strict_b64(text: object, code: str, what: str) -> bytes:
    if not isinstance(text, str):
        raise TrustError(code, f"{what} is not base64 text")
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (ValueError, UnicodeEncodeError, binascii.Error):
        raise TrustError(code, f"{what} is not base64") from None
    if base64.b64encode(raw).decode() != text:
        raise TrustError(code, f"{what} is not canonical base64")
    return raw


def envelope_payload(envelope: object, payload_type: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The payload bytes and (keyid, signature) pairs of an envelope, nothing verified yet. Raises `bad_envelope`."""
    if not isinstance(envelope, Mapping) or set(envelope) != {"payload", "payloadType", "signatures"}:
        raise TrustError("bad_envelope", "this is not a DSSE envelope")
    if envelope["payloadType"] != payload_type:
        raise TrustError("bad_envelope", f"payloadType is not {payload_type}")
    payload = strict_b64(envelope["payload"], "bad_envelope", "payload")
    if len(payload) > MAX_ENVELOPE_BYTES:
        raise TrustError("bad_envelope", "the payload is too large")
    listed = envelope["signatures"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_SIGNATURES:
        raise TrustError("bad_envelope", "signatures is not a list of 1 to 16")
    pairs: list[tuple[str, bytes]] = []
    for item in listed:
        if not isinstance(item, Mapping) or not isinstance(item.get("keyid"), str):
            raise TrustError("bad_envelope", "a signature has no keyid")
        pairs.append((item["keyid"], strict_b64(item.get("sig"), "bad_envelope", "sig")))
    return payload, pairs


def opened(
    envelope: object, payload_type: str, keys: KeySet | Mapping[str, TrustedKey]
) -> tuple[bytes, tuple[TrustedKey, ...]]:
    """The payload of an envelope, and the trusted, unrevoked keys that signed it: at least one. Raises as `open_envelope`."""
    payload, pairs = envelope_payload(envelope, payload_type)
    trusted = keys.by_kid() if isinstance(keys, KeySet) else keys
    known = [(trusted[kid], sig) for kid, sig in pairs if kid in trusted]
    if not known:
        raise TrustError("unknown_key", "no signature is by a key of this organization")
    usable = [(key, sig) for key, sig in known if key.status != "revoked"]
    if not usable:
        raise TrustError("key_revoked", "the signing key was revoked")
    data = pae(payload_type, payload)
    signers = tuple(key for key, sig in usable if verifies(key, sig, data))
    if not signers:
        raise TrustError("bad_signature", "the signature does not verify")
    return payload, signers


def open_envelope(envelope: object, payload_type: str, keys: KeySet | Mapping[str, TrustedKey]) -> bytes:
    """The payload of an envelope that at least one trusted, unrevoked key signed.

    Raises `bad_envelope` on a wrong shape or type, `unknown_key` when no signature names a trusted key, `key_revoked` when only
    revoked ones do, `bad_signature` when it does not verify.
    """
    return opened(envelope, payload_type, keys)[0]


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` for `json`: raises ValueError when an object names a key twice, for readers disagree which counts."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate key")
    return value


def load_canonical(data: bytes, code: str, what: str) -> dict[str, Any]:
    """The JSON object in `data`, which must be its RFC 8785 form to the byte. Raises TrustError(`code`)."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique_members)
        canonical = rfc8785.dumps(value)
    except (ValueError, RecursionError, rfc8785.CanonicalizationError):
        raise TrustError(code, f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise TrustError(code, f"{what} is not an object")
    if canonical != data:
        raise TrustError(code, f"{what} is not in canonical form")
    return value


def field(value: Mapping[str, Any], name: str, kind: type | tuple[type, ...], code: str) -> Any:
    item = value.get(name)
    if not isinstance(item, kind) or isinstance(item, bool):
        raise TrustError(code, f"{name} is missing or of a wrong type")
    return item
