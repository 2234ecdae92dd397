"""The signed bundle: one deterministic ustar archive, written by the control plane and read by the hosts.

Members, in this order: `approval.cred config.json manifest.dsse.json manifest.json plan.json spec.kv`. Same inputs, same
bytes. Reading trusts nothing: every byte of the archive must be what writing its own contents again would give.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import rfc8785

from apps.runtime.config import config_hash as hash_config
from apps.runtime.spec import Diagnostic, compile_spec
from apps.runtime.trust import (
    PAYLOAD_MANIFEST,
    KeySet,
    Signer,
    TrustedKey,
    TrustError,
    load_canonical,
    opened,
    sign_envelope,
    verify_credential,
)

MEMBERS = ("approval.cred", "config.json", "manifest.dsse.json", "manifest.json", "plan.json", "spec.kv")
CONTENTS = ("approval.cred", "config.json", "plan.json", "spec.kv")
MAX_BUNDLE_BYTES = 8 * 1024 * 1024
_CAPS = {
    "approval.cred": 64 * 1024,
    "config.json": 1024 * 1024,
    "manifest.dsse.json": 256 * 1024,
    "manifest.json": 64 * 1024,
    "plan.json": 2 * 1024 * 1024,
    "spec.kv": 512 * 1024,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFacts:
    """What goes into an archive besides the pipeline. Ids are text, `built_at_ms` Unix ms, hashes `sha256:…`."""

    config: Mapping[str, Any]
    approval_cred: str
    org_id: str
    project_id: str
    environment_id: str
    posture: str
    deployment_id: str
    spec_hash: str
    config_hash: str
    sequence: int
    built_at_ms: int

    def with_pipeline(self, *, spec_kv: str, plan: Mapping[str, Any]) -> BundleInputs:
        """Everything, with the canonical spec and the plan that it compiles to."""
        facts = {each.name: getattr(self, each.name) for each in fields(self)}
        return BundleInputs(spec_kv=spec_kv, plan=plan, **facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleInputs(BundleFacts):
    """Everything that goes into an archive."""

    spec_kv: str
    plan: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BuiltBundle:
    """The archive's bytes, their SHA-256 (hex), and the manifest inside."""

    archive: bytes
    sha256: str
    manifest: dict[str, Any]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _archive(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            info.mode = 0o644
            info.mtime = info.uid = info.gid = 0
            info.uname = info.gname = ""
            tar.addfile(info, io.BytesIO(files[name]))
    return out.getvalue()


def build_bundle(inputs: BundleInputs, signer: Signer) -> BuiltBundle:
    """Pack and sign. Deterministic: the same inputs and key give the same bytes (Ed25519 is)."""
    files = {
        "spec.kv": inputs.spec_kv.encode(),
        "plan.json": rfc8785.dumps(dict(inputs.plan)),
        "config.json": rfc8785.dumps(dict(inputs.config)),
        "approval.cred": inputs.approval_cred.encode(),
    }
    manifest: dict[str, Any] = {
        "v": 1,
        "organization_id": inputs.org_id,
        "project_id": inputs.project_id,
        "environment_id": inputs.environment_id,
        "environment_posture": inputs.posture,
        "deployment_id": inputs.deployment_id,
        "spec_hash": inputs.spec_hash,
        "config_hash": inputs.config_hash,
        "sequence": inputs.sequence,
        "built_at": inputs.built_at_ms,
        "files": {name: {"sha256": _sha256(data), "size": len(data)} for name, data in files.items()},
    }
    payload = rfc8785.dumps(manifest)
    files["manifest.json"] = payload
    files["manifest.dsse.json"] = rfc8785.dumps(sign_envelope(payload, PAYLOAD_MANIFEST, [signer]))
    archive = _archive(files)
    return BuiltBundle(archive, _sha256(archive), manifest)


@dataclass(frozen=True, slots=True)
class BundleContents:
    """An archive taken apart under caps; nothing in it verified yet."""

    files: Mapping[str, bytes]
    sha256: str

    def json(self, name: str) -> dict[str, Any]:
        """The canonical JSON object of a member. Raises `bundle_malformed`."""
        return load_canonical(self.files[name], "bundle_malformed", name)


def _bad(message: str) -> TrustError:
    return TrustError("bundle_malformed", message)


_BLOCK = 512
_END = bytes(2 * _BLOCK)


def _octal(field: bytes, what: str) -> int:
    digits = field.rstrip(b" \0")
    if not digits or not all(48 <= digit < 56 for digit in digits):
        raise _bad(f"a header's {what} is not a number")
    return int(digits, 8)


def _member(header: bytes) -> tuple[str, int]:
    """Name and size that one header block gives (POSIX.1-1988 ustar). Raises TrustError for what is no regular file of ours."""
    if header[257:263] != b"ustar\0" or sum(header) - sum(header[148:156]) + 8 * 32 != _octal(header[148:156], "sum"):
        raise _bad("this is not a ustar archive")
    stem, prefix = header[:100].rstrip(b"\0"), header[345:500].rstrip(b"\0")
    name = (prefix + b"/" + stem if prefix else stem).decode("ascii", "backslashreplace")
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise TrustError("bundle_path_escape", "a member's path leads out of the archive")
    if header[156:157] != b"0" or header[157:257].strip(b"\0"):
        raise _bad(f"{name[:80]!r} is not a regular file")
    if name not in _CAPS:
        raise _bad(f"{name[:80]!r} is not one of the six files")
    size = _octal(header[124:136], "size")
    if size > _CAPS[name]:
        raise TrustError("bundle_too_large", f"{name} is larger than {_CAPS[name]} bytes")
    return name, size


def read_bundle(data: bytes) -> BundleContents:
    """Take an archive apart. Raises `bundle_too_large`, `bundle_path_escape`, or `bundle_malformed` on anything but exactly the
    six regular files, in order, within their caps, in the one form that writing them gives."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise TrustError("bundle_too_large", f"the archive has more than {MAX_BUNDLE_BYTES} bytes")
    files: dict[str, bytes] = {}
    at = 0
    while data[at : at + len(_END)] != _END:
        header = data[at : at + _BLOCK]
        if len(header) != _BLOCK:
            raise _bad("the archive ends too early")
        name, size = _member(header)
        if name in files:
            raise _bad(f"{name!r} is there twice")
        at += _BLOCK
        files[name] = data[at : at + size]
        at += -(-size // _BLOCK) * _BLOCK
    if set(files) != set(MEMBERS):
        raise _bad("a file is missing")
    # also refuses data after the end, padding that is not zero, another order, mode or owner
    if _archive(files) != data:
        raise _bad("the archive is not in the one form that it has")
    return BundleContents(files, _sha256(data))


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """A bundle that may be run: its manifest, plan and config as JSON objects, and who approved it."""

    manifest: dict[str, Any]
    plan: dict[str, Any]
    config: dict[str, Any]
    spec_kv: str
    capabilities: tuple[str, ...]
    sequence: int
    deployment_id: str
    sha256: str
    approved_by: tuple[str, ...]


def _no(code: str, message: str) -> TrustError:
    return TrustError(code, message)


_MOST_DIAGNOSTICS = 5


def _not_understood(diagnostics: Sequence[Diagnostic]) -> str:
    """The refusal of a host that is older than the spec: the text is the one that was signed, so it was not tampered with."""
    listed = [f"line {item.line}: {item.code}: {item.message}" for item in diagnostics[:_MOST_DIAGNOSTICS]]
    if len(diagnostics) > _MOST_DIAGNOSTICS:
        listed.append(f"and {len(diagnostics) - _MOST_DIAGNOSTICS} more")
    return "this version of the agent does not understand the spec, a newer one may: " + " ".join(listed)


_MANIFEST_FIELDS = {
    "v": int, "organization_id": str, "project_id": str, "environment_id": str, "environment_posture": str,
    "deployment_id": str, "spec_hash": str, "config_hash": str, "sequence": int, "built_at": int, "files": dict,
}  # fmt: skip


def verify_bundle(
    contents: BundleContents,
    *,
    keys: KeySet | Mapping[str, TrustedKey],
    expected_sha256: str | None = None,
    environment_id: str | None = None,
    posture: str | None = None,
    org_id: str | None = None,
    project_id: str | None = None,
    deployment_id: str | None = None,
    sequence: int | None = None,
) -> VerifiedBundle:
    """Everything a host checks before it runs a bundle; what is given must match.

    In this order: `bundle_digest_mismatch`; the envelope (`bad_envelope`, `unknown_key`, `key_revoked`,
    `bad_signature`); `manifest_mismatch` (manifest.json is not the signed payload, its shape, or a file's digest or size);
    `bundle_by_retired_key` (built after its key was retired, by more than the clock skew);
    `wrong_organization`, `wrong_environment`, `wrong_deployment`, `wrong_sequence`; this version understands the spec
    (`spec_not_understood`, with the diagnostics) and compiles it to the same hash and plan (`spec_mismatch`), the config has its
    hash (`config_mismatch`); the credential as of `built_at` (`credential_…`).
    """
    if expected_sha256 is not None and contents.sha256 != expected_sha256:
        raise _no("bundle_digest_mismatch", "the archive is not the one that was directed")
    envelope = load_canonical(contents.files["manifest.dsse.json"], "bad_envelope", "manifest.dsse.json")
    payload, signers = opened(envelope, PAYLOAD_MANIFEST, keys)
    if payload != contents.files["manifest.json"]:
        raise _no("manifest_mismatch", "manifest.json is not what was signed")
    manifest = load_canonical(payload, "manifest_mismatch", "manifest.json")
    if set(manifest) != set(_MANIFEST_FIELDS) or not all(
        isinstance(manifest[name], kind) and not isinstance(manifest[name], bool)
        for name, kind in _MANIFEST_FIELDS.items()
    ):
        raise _no("manifest_mismatch", "the manifest's fields are not the known ones")
    if manifest["v"] != 1:
        raise _no("manifest_mismatch", "the manifest's version is unknown")
    if all(key.signed_too_late(manifest["built_at"]) for key in signers):
        raise _no("bundle_by_retired_key", "the bundle was built after its key was retired")
    wanted = {name: {"sha256": _sha256(contents.files[name]), "size": len(contents.files[name])} for name in CONTENTS}
    if manifest["files"] != wanted:
        raise _no("manifest_mismatch", "a file is not the one that was signed")
    for given, name, code in (
        (org_id, "organization_id", "wrong_organization"),
        (project_id, "project_id", "wrong_environment"),
        (environment_id, "environment_id", "wrong_environment"),
        (posture, "environment_posture", "wrong_environment"),
        (deployment_id, "deployment_id", "wrong_deployment"),
        (sequence, "sequence", "wrong_sequence"),
    ):
        if given is not None and manifest[name] != given:
            raise _no(code, f"the bundle's {name} is another one")

    text = contents.files["spec.kv"].decode("utf-8", "replace")
    compiled = compile_spec(text)
    if not compiled.ok or compiled.plan is None or compiled.spec_hash != manifest["spec_hash"]:
        if compiled.diagnostics:
            raise _no("spec_not_understood", _not_understood(compiled.diagnostics))
        raise _no("spec_mismatch", "spec.kv does not compile to the signed hash")
    plan: dict[str, Any] = dict(compiled.plan.as_dict())
    if compiled.canonical != text or rfc8785.dumps(plan) != contents.files["plan.json"]:
        raise _no("spec_mismatch", "plan.json is not what spec.kv compiles to")
    config = contents.json("config.json")
    if hash_config(config) != manifest["config_hash"]:
        raise _no("config_mismatch", "config.json does not have the signed hash")

    claims = verify_credential(
        contents.files["approval.cred"].decode("utf-8", "replace"),
        keys=keys,
        spec_hash=manifest["spec_hash"],
        environment_id=manifest["environment_id"],
        posture=manifest["environment_posture"],
        at_ms=manifest["built_at"],
        capabilities=compiled.capabilities,
        config_hash=manifest["config_hash"],
        subject=f"deployment:{manifest['deployment_id']}",
        org_id=manifest["organization_id"],
        project_id=manifest["project_id"],
    )
    return VerifiedBundle(
        manifest=manifest,
        plan=contents.json("plan.json"),
        config=config,
        spec_kv=text,
        capabilities=tuple(compiled.capabilities),
        sequence=manifest["sequence"],
        deployment_id=manifest["deployment_id"],
        sha256=contents.sha256,
        approved_by=claims.issued_by,
    )
