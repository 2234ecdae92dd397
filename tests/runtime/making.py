"""A key, a spec and a bundle for the tests of trust, bundles and the agent."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from dataclasses import dataclass, field, replace
from typing import Any

import rfc8785

from apps.runtime import trust
from apps.runtime.bundle import BuiltBundle, BundleInputs, build_bundle
from apps.runtime.config import config_hash
from apps.runtime.spec import compile_spec

ORG = "01890000-0000-7000-8000-00000000000a"
PROJECT = "01890000-0000-7000-8000-00000000000b"
ENVIRONMENT = "01890000-0000-7000-8000-00000000000c"
AGENT = "01890000-0000-7000-8000-00000000000d"
DEPLOYMENT = "01890000-0000-7000-8000-00000000000e"
SPEC = (
    "spec.version=1\npipeline.name=orders\npipeline.target=SingleRing\n"
    "single_ring.stages.0.id=redact\nsingle_ring.stages.0.op=dataguard_redact\n"
)


def acting(*ops: str) -> str:
    """A spec whose stages do `ops`, one after the other."""
    lines = ["spec.version=1", "pipeline.name=acting", "pipeline.target=SingleRing"]
    for number, op in enumerate(ops):
        lines += [f"single_ring.stages.{number}.id=s{number}", f"single_ring.stages.{number}.op={op}"]
        lines += [f"single_ring.stages.{number}.depends_on.0={number - 1}"] if number else []
    return "\n".join(lines) + "\n"


def now_ms() -> int:
    return int(time.time() * 1000)


def new_signer() -> trust.Signer:
    private = trust.generate_private_key()
    return trust.Signer(trust.kid_of(trust.public_key(private)), private)


@dataclass
class Maker:
    """Signs for one organization; every part can be made wrong."""

    signer: trust.Signer = field(default_factory=new_signer)

    @property
    def key(self) -> trust.TrustedKey:
        return trust.TrustedKey(self.signer.kid, trust.public_key(self.signer.private_raw))

    @property
    def keys(self) -> dict[str, trust.TrustedKey]:
        return {self.signer.kid: self.key}

    def key_set(self) -> dict[str, Any]:
        payload = trust.make_keyset_payload(org_id=ORG, version=1, keys=[self.key], issued_at=now_ms())
        envelope = trust.sign_envelope(payload, trust.PAYLOAD_KEYSET, [self.signer])
        return {"version": 1, "keys": [self.key.as_dict()], "envelopes": [envelope]}

    def claims(
        self, config: dict[str, Any], deployment_id: str = DEPLOYMENT, spec: str = SPEC, **wrong: Any
    ) -> trust.CredentialClaims:
        compiled = compile_spec(spec)
        at = now_ms()
        claims = trust.CredentialClaims(
            kid=self.signer.kid,
            org_id=ORG,
            project_id=PROJECT,
            environment_id=ENVIRONMENT,
            environment_posture="dev",
            spec_hash=str(compiled.spec_hash),
            capabilities=tuple(compiled.capabilities),
            issued_at=at - 60_000,
            expires_at=at + 3_600_000,
            issued_by=("rita",),
            approval_id="a",
            config_hash=config_hash(config),
            subject=f"deployment:{deployment_id}",
            targets_sha256=trust.targets_sha256([AGENT]),
        )
        return replace(claims, **wrong)

    def bundle(
        self,
        *rules: str,
        sequence: int = 1000,
        environment_id: str = ENVIRONMENT,
        deployment_id: str = DEPLOYMENT,
        built_at_ms: int | None = None,
        spec: str = SPEC,
        config: dict[str, Any] | None = None,
        place: dict[str, Any] | None = None,
        **wrong: Any,
    ) -> BuiltBundle:
        """A bundle. `place` replaces facts of its manifest, `wrong` claims of its approval."""
        config = config or {
            "adapters": {
                "ingress": {"type": "file", "path": "in.jsonl"},
                "egress": {"type": "file", "path": "out.jsonl"},
            },
            "stages": {"redact": {"rules": list(rules or ("secret:drop",))}},
        }
        compiled = compile_spec(spec)
        assert compiled.plan is not None
        assert compiled.canonical is not None
        claims = self.claims(config, deployment_id, spec, environment_id=environment_id, **wrong)
        inputs = BundleInputs(
            spec_kv=compiled.canonical,
            plan=compiled.plan.as_dict(),
            config=config,
            approval_cred=trust.mint_credential(claims, self.signer),
            org_id=ORG,
            project_id=PROJECT,
            environment_id=environment_id,
            posture="dev",
            deployment_id=deployment_id,
            spec_hash=str(compiled.spec_hash),
            config_hash=config_hash(config),
            sequence=sequence,
            built_at_ms=built_at_ms or now_ms(),
        )
        return build_bundle(replace(inputs, **(place or {})), self.signer)

    def directive(self, bundle: BuiltBundle | None, seq: int, word: str = "activate", **wrong: Any) -> dict[str, Any]:
        at = now_ms()
        directive = trust.Directive(
            environment_id=ENVIRONMENT,
            agent_id=AGENT,
            directive=word,
            deployment_id=bundle.manifest["deployment_id"] if bundle else None,
            for_deployment_id=bundle.manifest["deployment_id"] if bundle else DEPLOYMENT,
            bundle_sha256=bundle.sha256 if bundle else None,
            sequence=bundle.manifest["sequence"] if bundle else None,
            directive_seq=seq,
            issued_at=at,
            expires_at=at + trust.DIRECTIVE_LIFE_MS,
        )
        directive = replace(directive, **wrong)
        return {"envelope": trust.sign_directive(directive, self.signer), "directive": directive.as_dict()}


def members(archive: bytes) -> dict[str, bytes]:
    """The files of a bundle."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


def packed(files: dict[str, bytes], **changes: Any) -> bytes:
    """An archive of these files, packed as a bundle is; `changes` are other values of each member's header."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(files[name]), 0o644, 0
            for key, value in changes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(files[name]))
    return out.getvalue()


def signed_again(files: dict[str, bytes], maker: Maker, change: dict[str, Any]) -> bytes:
    """An archive of these files, with a manifest of their digests and `change`, signed by a key of the organization."""
    manifest = {**json.loads(files["manifest.json"]), **change}
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(files[name]).hexdigest(), "size": len(files[name])}
        for name in ("approval.cred", "config.json", "plan.json", "spec.kv")
    }
    if "files" in change:
        manifest["files"] = change["files"]
    payload = rfc8785.dumps({name: value for name, value in manifest.items() if value is not ...})
    envelope = trust.sign_envelope(payload, trust.PAYLOAD_MANIFEST, [maker.signer])
    return packed({**files, "manifest.json": payload, "manifest.dsse.json": rfc8785.dumps(envelope)})
