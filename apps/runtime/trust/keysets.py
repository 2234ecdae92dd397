"""Key sets: an organization's keys at one version, each version signed by its predecessor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import rfc8785

from apps.runtime.trust.envelopes import envelope_payload, field, load_canonical, pae, strict_b64
from apps.runtime.trust.keys import KeySet, TrustedKey, TrustError, is_weak, kid_of, verifies

PAYLOAD_KEYSET = "application/vnd.byteor.keyset.v1+json"
MAX_KEYS = 64


def make_keyset_payload(*, org_id: str, version: int, keys: Iterable[TrustedKey], issued_at: int) -> bytes:
    """The canonical payload of a key set envelope."""
    listed = [key.as_dict() for key in sorted(keys, key=lambda key: key.kid)]
    return rfc8785.dumps({"v": 1, "org_id": org_id, "version": version, "keys": listed, "issued_at": issued_at})


def parse_keyset(payload: bytes) -> KeySet:
    """Read a key set payload, strictly. Raises `bad_keyset`."""
    code = "bad_keyset"
    value = load_canonical(payload, code, "the key set")
    if value.get("v") != 1 or isinstance(value.get("v"), bool):
        raise TrustError(code, "unknown key set version")
    keys: list[TrustedKey] = []
    for item in field(value, "keys", list, code):
        if not isinstance(item, dict):
            raise TrustError(code, "a key is not an object")
        public = strict_b64(item.get("public_key"), code, "public_key")
        if item.get("algorithm") != "ed25519" or len(public) != 32 or item.get("kid") != kid_of(public):
            raise TrustError(code, "a key's algorithm, length or kid is wrong")
        if is_weak(public):
            raise TrustError(code, "a key is a point of small order: anybody can sign for it")
        if item.get("status") not in ("active", "retired", "revoked"):
            raise TrustError(code, "a key's status is unknown")
        for name in ("not_before", "not_after"):
            field(item, name, (int, type(None)), code)
        keys.append(TrustedKey(item["kid"], public, item["status"], item.get("not_before"), item.get("not_after")))
    if not keys or len({key.kid for key in keys}) != len(keys) or len(keys) > MAX_KEYS:
        raise TrustError(code, f"a key set names 1 to {MAX_KEYS} different keys")
    if all(key.status != "active" for key in keys):
        raise TrustError(code, "a key set has an active key, or nothing could follow it")
    return KeySet(field(value, "org_id", str, code), int(field(value, "version", int, code)), tuple(keys))


def accept_keyset(current: KeySet | None, envelopes: Sequence[object]) -> KeySet:
    """Follow `envelopes`, oldest first, from the set trusted so far.

    With nothing trusted yet, the newest is accepted because enrollment gave it, if it is signed by a key in it. After that
    version n+1 must be signed by a key active in n and not revoked in n+1. Raises `keyset_lower`, `keyset_gap`,
    `keyset_unsigned`, `keyset_wrong_organization` or `bad_keyset`; `current` stays what it was.
    """
    trusted = current
    for envelope in envelopes:
        payload, pairs = envelope_payload(envelope, PAYLOAD_KEYSET)
        new = parse_keyset(payload)
        data = pae(PAYLOAD_KEYSET, payload)
        if trusted is None:
            signers = {kid: key for kid, key in new.by_kid().items() if key.status != "revoked"}
        else:
            if new.org_id != trusted.org_id:
                raise TrustError("keyset_wrong_organization", "the key set is of another organization")
            if new.version <= trusted.version:
                if new == trusted:
                    continue
                raise TrustError("keyset_lower", f"version {new.version} is not above {trusted.version}")
            if new.version != trusted.version + 1:
                raise TrustError("keyset_gap", f"version {new.version} does not follow {trusted.version}")
            after = new.by_kid()
            signers = {
                kid: key
                for kid, key in trusted.by_kid().items()
                if key.status == "active" and (kid not in after or after[kid].status != "revoked")
            }
        if not any(kid in signers and verifies(signers[kid], sig, data) for kid, sig in pairs):
            raise TrustError("keyset_unsigned", f"version {new.version} is not signed by a key trusted before it")
        trusted = new
    if trusted is None:
        raise TrustError("keyset_unsigned", "no key set was given")
    return trusted
