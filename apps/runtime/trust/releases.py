"""Releases of the agent: which program an organization's control plane offers to the hosts that take upgrades from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import rfc8785

from apps.runtime.trust.envelopes import field, load_canonical, opened, sign_envelope
from apps.runtime.trust.keys import CLOCK_SKEW_MS, KeySet, Signer, TrustedKey, TrustError

PAYLOAD_RELEASE = "application/vnd.byteor.agent-release.v1+json"
RELEASE_LIFE_MS = 10 * 60 * 1000
MAX_RELEASE_BYTES = 16 * 1024 * 1024
_VERSION = re.compile(r"\A(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\Z")
_SHA256 = re.compile(r"\A[0-9a-f]{64}\Z")
_PATH = re.compile(r"\A(/[a-z0-9][a-z0-9._-]{0,99}){1,8}\Z")


@dataclass(frozen=True, slots=True)
class AgentRelease:
    """One program: `version` is three numbers, `sha256` and `size` are of its bytes, `path` is below the agent's own address."""

    version: str
    sha256: str
    size: int
    path: str
    issued_at: int
    expires_at: int
    v: int = 1


def version_tuple(text: str) -> tuple[int, int, int]:
    """`1.20.3` as numbers that compare. ValueError for anything else."""
    match = _VERSION.match(text)
    if match is None:
        raise ValueError("a version is three numbers with dots between them")
    return int(match[1]), int(match[2]), int(match[3])


def sign_release(release: AgentRelease, signer: Signer) -> dict[str, Any]:
    """The DSSE envelope of a release."""
    return sign_envelope(rfc8785.dumps(asdict(release)), PAYLOAD_RELEASE, [signer])


def verify_release(envelope: object, keys: KeySet | Mapping[str, TrustedKey], *, now_ms: int) -> AgentRelease:
    """The release in `envelope`, if it is offered now.

    Raises what `open_envelope` raises, then `bad_release`, `release_unknown_version`, `release_by_retired_key`,
    `release_expired`, `release_not_yet_valid` (beyond 5 minutes of clock skew), `release_too_long_lived`.
    """
    payload, signers = opened(envelope, PAYLOAD_RELEASE, keys)
    release = _parse(payload)
    if all(key.status == "retired" and release.issued_at > (key.not_after or 0) + CLOCK_SKEW_MS for key in signers):
        raise TrustError("release_by_retired_key", "the release was signed after its key was retired")
    if release.expires_at + CLOCK_SKEW_MS < now_ms:
        raise TrustError("release_expired", "the offer has expired")
    if release.issued_at - CLOCK_SKEW_MS > now_ms:
        raise TrustError("release_not_yet_valid", "the offer is from the future")
    if release.expires_at - release.issued_at > RELEASE_LIFE_MS:
        raise TrustError("release_too_long_lived", "the offer outlives ten minutes")
    return release


def _parse(payload: bytes) -> AgentRelease:
    code = "bad_release"
    value = load_canonical(payload, code, "the release")
    if value.get("v") != 1 or isinstance(value.get("v"), bool):
        raise TrustError("release_unknown_version", "the release's form is unknown")
    if set(value) != set(AgentRelease.__dataclass_fields__):
        raise TrustError(code, "the release's fields are not the known ones")
    for name in ("size", "issued_at", "expires_at"):
        field(value, name, int, code)
    for name, form in (("version", _VERSION), ("sha256", _SHA256), ("path", _PATH)):
        if not form.match(field(value, name, str, code)):
            raise TrustError(code, f"the release's {name} is malformed")
    if ".." in value["path"]:
        raise TrustError(code, "the release's path is malformed")
    if not 0 < value["size"] <= MAX_RELEASE_BYTES:
        raise TrustError(code, f"a program has at most {MAX_RELEASE_BYTES} bytes")
    return AgentRelease(**value)
