"""Directives: what an agent should run, signed and short-lived."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

from apps.runtime.trust.envelopes import field, load_canonical, opened, sign_envelope
from apps.runtime.trust.keys import CLOCK_SKEW_MS, KeySet, Signer, TrustedKey, TrustError

PAYLOAD_DIRECTIVE = "application/vnd.byteor.directive.v1+json"
DIRECTIVE_LIFE_MS = 10 * 60 * 1000
_UUID = re.compile(r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_SHA256 = re.compile(r"\A[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Directive:
    """What an agent should run. `stop` and `none` have no bundle and no sequence."""

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
        return {name: getattr(self, name) for name in self.__slots__}

    def content_digest(self) -> str:
        """SHA-256 (hex) of everything but the times: what one `directive_seq` identifies."""
        body = {k: v for k, v in self.as_dict().items() if k not in ("issued_at", "expires_at")}
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
    if value["v"] != 1 or isinstance(value["v"], bool):
        raise TrustError("directive_unknown_version", "the directive's version is unknown")
    word = value["directive"]
    if word not in ("activate", "rollback", "stop", "none"):
        raise TrustError(code, "the directive's word is unknown")
    for name in ("environment_id", "agent_id"):
        field(value, name, str, code)
    for name in ("directive_seq", "issued_at", "expires_at"):
        field(value, name, int, code)
    for name in ("deployment_id", "for_deployment_id", "bundle_sha256"):
        field(value, name, (str, type(None)), code)
        if value[name] is not None and name != "bundle_sha256" and not _UUID.match(value[name]):
            raise TrustError(code, f"{name} is not a UUID")
    if not all(0 <= value[name] < 2**63 for name in ("directive_seq", "issued_at", "expires_at")):
        raise TrustError(code, "a number is out of range")
    if value["expires_at"] < value["issued_at"]:
        raise TrustError(code, "the directive expires before it is issued")
    runs = word in ("activate", "rollback")
    if runs:
        field(value, "deployment_id", str, code)
        if not 0 <= field(value, "sequence", int, code) < 2**63:
            raise TrustError(code, "sequence is out of range")
        if not _SHA256.match(field(value, "bundle_sha256", str, code)):
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

    Raises what `open_envelope` raises, then `bad_directive`, `directive_by_retired_key` (issued after the key was retired, by more
    than the clock skew: a retired key verifies what it signed before), `directive_wrong_environment`, `directive_wrong_agent`,
    `directive_expired`, `directive_not_yet_valid` (beyond 5 minutes of clock skew), `directive_too_long_lived`,
    `directive_replayed` (a lower `directive_seq`, or the same one with other content).
    """
    payload, signers = opened(envelope, PAYLOAD_DIRECTIVE, keys)
    directive = _parse_directive(payload)
    if all(key.status == "retired" and directive.issued_at > (key.not_after or 0) + CLOCK_SKEW_MS for key in signers):
        raise TrustError("directive_by_retired_key", "the directive was issued after its key was retired")
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
