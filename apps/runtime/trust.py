"""Signatures and what is believed because of them: DSSE envelopes, key sets, directives, approval credentials.

Pure Python over `cryptography`; the same code signs in the control plane and verifies on the hosts. Standards: DSSE v1
(pre-authentication encoding and JSON envelope), Ed25519 (RFC 8032), JSON canonicalization (RFC 8785). All times
in signed documents are integer Unix milliseconds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_MANIFEST = "application/vnd.byteor.manifest.v1+json"
PAYLOAD_DIRECTIVE = "application/vnd.byteor.directive.v1+json"
PAYLOAD_KEYSET = "application/vnd.byteor.keyset.v1+json"

CLOCK_SKEW_MS = 5 * 60 * 1000
DIRECTIVE_LIFE_MS = 10 * 60 * 1000
MAX_ENVELOPE_BYTES = 1024 * 1024
MAX_SIGNATURES = 16


class TrustError(Exception):
    """Something was not to be believed: a stable `code` and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


# --- keys -----------------------------------------------------------------------------------------------------------


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


def _verifies(key: TrustedKey, signature: bytes, data: bytes) -> bool:
    if key.status == "revoked":
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


# --- DSSE -----------------------------------------------------------------------------------------------------------


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


def _b64(text: object, code: str, what: str) -> bytes:
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
    payload = _b64(envelope["payload"], "bad_envelope", "payload")
    if len(payload) > MAX_ENVELOPE_BYTES:
        raise TrustError("bad_envelope", "the payload is too large")
    listed = envelope["signatures"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_SIGNATURES:
        raise TrustError("bad_envelope", "signatures is not a list of 1 to 16")
    pairs: list[tuple[str, bytes]] = []
    for item in listed:
        if not isinstance(item, Mapping) or not isinstance(item.get("keyid"), str):
            raise TrustError("bad_envelope", "a signature has no keyid")
        pairs.append((item["keyid"], _b64(item.get("sig"), "bad_envelope", "sig")))
    return payload, pairs


def open_envelope(envelope: object, payload_type: str, keys: KeySet | Mapping[str, TrustedKey]) -> bytes:
    """The payload of an envelope that at least one trusted, unrevoked key signed.

    Raises `bad_envelope` on a wrong shape or type, `unknown_key` when no signature names a trusted key, `key_revoked` when only
    revoked ones do, `bad_signature` when it does not verify.
    """
    payload, pairs = envelope_payload(envelope, payload_type)
    trusted = keys.by_kid() if isinstance(keys, KeySet) else keys
    known = [(trusted[kid], sig) for kid, sig in pairs if kid in trusted]
    if not known:
        raise TrustError("unknown_key", "no signature is by a key of this organization")
    usable = [(key, sig) for key, sig in known if key.status != "revoked"]
    if not usable:
        raise TrustError("key_revoked", "the signing key was revoked")
    data = pae(payload_type, payload)
    if not any(_verifies(key, sig, data) for key, sig in usable):
        raise TrustError("bad_signature", "the signature does not verify")
    return payload


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate key")
    return value


def load_canonical(data: bytes, code: str, what: str) -> dict[str, Any]:
    """The JSON object in `data`, which must be its RFC 8785 form to the byte. Raises TrustError(`code`)."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
        canonical = rfc8785.dumps(value)
    except (ValueError, RecursionError, rfc8785.CanonicalizationError):
        raise TrustError(code, f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise TrustError(code, f"{what} is not an object")
    if canonical != data:
        raise TrustError(code, f"{what} is not in canonical form")
    return value


def _field(value: Mapping[str, Any], name: str, kind: type | tuple[type, ...], code: str) -> Any:
    item = value.get(name)
    if not isinstance(item, kind) or (isinstance(item, bool) and kind is int):
        raise TrustError(code, f"{name} is missing or of a wrong type")
    return item


# --- key sets -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of one organization at one version."""

    org_id: str
    version: int
    keys: tuple[TrustedKey, ...]

    def by_kid(self) -> dict[str, TrustedKey]:
        return {key.kid: key for key in self.keys}


def make_keyset_payload(*, org_id: str, version: int, keys: Iterable[TrustedKey], issued_at: int) -> bytes:
    """The canonical payload of a key set envelope."""
    listed = [key.as_dict() for key in sorted(keys, key=lambda key: key.kid)]
    return rfc8785.dumps({"v": 1, "org_id": org_id, "version": version, "keys": listed, "issued_at": issued_at})


def parse_keyset(payload: bytes) -> KeySet:
    """Read a key set payload, strictly. Raises `bad_keyset`."""
    code = "bad_keyset"
    value = load_canonical(payload, code, "the key set")
    if value.get("v") != 1:
        raise TrustError(code, "unknown key set version")
    keys: list[TrustedKey] = []
    for item in _field(value, "keys", list, code):
        if not isinstance(item, dict):
            raise TrustError(code, "a key is not an object")
        public = _b64(item.get("public_key"), code, "public_key")
        if item.get("algorithm") != "ed25519" or len(public) != 32 or item.get("kid") != kid_of(public):
            raise TrustError(code, "a key's algorithm, length or kid is wrong")
        if item.get("status") not in ("active", "retired", "revoked"):
            raise TrustError(code, "a key's status is unknown")
        keys.append(TrustedKey(item["kid"], public, item["status"], item.get("not_before"), item.get("not_after")))
    if not keys or len({key.kid for key in keys}) != len(keys) or len(keys) > 64:
        raise TrustError(code, "a key set names 1 to 64 different keys")
    return KeySet(_field(value, "org_id", str, code), int(_field(value, "version", int, code)), tuple(keys))


def accept_keyset(current: KeySet | None, envelopes: Sequence[object]) -> KeySet:
    """Follow `envelopes`, oldest first, from the set trusted so far.

    With nothing trusted yet, the newest is believed because enrollment gave it, if it is signed by a key in it. After that
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
        if not any(kid in signers and _verifies(signers[kid], sig, data) for kid, sig in pairs):
            raise TrustError("keyset_unsigned", f"version {new.version} is not signed by a key trusted before it")
        trusted = new
    if trusted is None:
        raise TrustError("keyset_unsigned", "no key set was given")
    return trusted


# --- directives -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Directive:
    """What an agent shall run. `stop` and `none` have no bundle and no sequence."""

    environment_id: str
    agent_id: str
    directive: str
    deployment_id: str | None
    for_deployment_id: str | None
    bundle_sha256: str | None
    sequence: int | None
    directive_seq: int
    issued_at: int
    expires_at: int
    v: int = 1

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def content_digest(self) -> str:
        """SHA-256 (hex) of everything but the times: what one `directive_seq` stands for."""
        body = {k: v for k, v in asdict(self).items() if k not in ("issued_at", "expires_at")}
        return hashlib.sha256(rfc8785.dumps(body)).hexdigest()


def sign_directive(directive: Directive, signer: Signer) -> dict[str, Any]:
    """The DSSE envelope of a directive."""
    return sign_envelope(rfc8785.dumps(directive.as_dict()), PAYLOAD_DIRECTIVE, [signer])


def _parse_directive(payload: bytes) -> Directive:
    code = "bad_directive"
    value = load_canonical(payload, code, "the directive")
    names = set(Directive.__dataclass_fields__)
    if set(value) != names:
        raise TrustError(code, "the directive's fields are not the known ones")
    if value["v"] != 1:
        raise TrustError("directive_unknown_version", "the directive's version is unknown")
    word = value["directive"]
    if word not in ("activate", "rollback", "stop", "none"):
        raise TrustError(code, "the directive's word is unknown")
    for name in ("environment_id", "agent_id"):
        _field(value, name, str, code)
    for name in ("directive_seq", "issued_at", "expires_at"):
        _field(value, name, int, code)
    for name in ("deployment_id", "for_deployment_id", "bundle_sha256"):
        _field(value, name, (str, type(None)), code)
    runs = word in ("activate", "rollback")
    if runs:
        _field(value, "deployment_id", str, code)
        _field(value, "sequence", int, code)
        if len(_field(value, "bundle_sha256", str, code)) != 64:
            raise TrustError(code, "bundle_sha256 is not 64 hex digits")
    elif value["bundle_sha256"] is not None or value["sequence"] is not None:
        raise TrustError(code, f"a {word} directive names a bundle")
    return Directive(**value)


def verify_directive(
    envelope: object,
    keys: KeySet | Mapping[str, TrustedKey],
    *,
    environment_id: str,
    agent_id: str,
    now_ms: int,
    last_seq: int = 0,
    last_content_digest: str | None = None,
) -> Directive:
    """The directive in `envelope`, if this agent may obey it now.

    Raises what `open_envelope` raises, then `bad_directive`, `directive_wrong_environment`, `directive_wrong_agent`,
    `directive_expired`, `directive_not_yet_valid` (beyond 5 minutes of clock skew), `directive_too_long_lived`,
    `directive_replayed` (a lower `directive_seq`, or the same one with other content).
    """
    directive = _parse_directive(open_envelope(envelope, PAYLOAD_DIRECTIVE, keys))
    if directive.environment_id != environment_id:
        raise TrustError("directive_wrong_environment", "the directive is for another environment")
    if directive.agent_id != agent_id:
        raise TrustError("directive_wrong_agent", "the directive is for another agent")
    if directive.expires_at + CLOCK_SKEW_MS < now_ms:
        raise TrustError("directive_expired", "the directive has expired")
    if directive.issued_at - CLOCK_SKEW_MS > now_ms:
        raise TrustError("directive_not_yet_valid", "the directive is from the future")
    if directive.expires_at - directive.issued_at > DIRECTIVE_LIFE_MS:
        raise TrustError("directive_too_long_lived", "the directive outlives ten minutes")
    if directive.directive_seq < last_seq:
        raise TrustError("directive_replayed", f"directive {directive.directive_seq} is older than {last_seq}")
    if directive.directive_seq == last_seq and last_content_digest not in (None, directive.content_digest()):
        raise TrustError("directive_replayed", f"directive {last_seq} was given with other content before")
    return directive


# --- approval credentials -------------------------------------------------------------------------------------------


def targets_sha256(agent_ids: Iterable[str]) -> str:
    """SHA-256 (hex) of the RFC 8785 form of the sorted agent ids."""
    return hashlib.sha256(rfc8785.dumps(sorted(str(a) for a in agent_ids))).hexdigest()


@dataclass(frozen=True, slots=True)
class CredentialClaims:
    """What an approval credential says. `capabilities`, `issued_by` are lists of text; times are Unix ms."""

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
        _field(value, name, str, "credential_undecodable")
    for name in ("issued_at", "expires_at"):
        _field(value, name, int, "credential_undecodable")
    for name in ("capabilities", "issued_by"):
        items = _field(value, name, list, "credential_undecodable")
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
    `issued_at`), `credential_missing_capability`, `credential_wrong_config`, `credential_wrong_subject`.
    """
    claims, raw, payload, signature = decode_credential(token)
    trusted = keys.by_kid() if isinstance(keys, KeySet) else keys
    key = trusted.get(raw["kid"])
    if key is None or not _verifies(key, signature, payload):
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
    return claims
