"""`docs/verify.md` works as it is written: its blocks are run on a real bundle."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from apps.runtime import trust
from apps.runtime.trust import public_key_pem
from tests.runtime.making import ORG, Maker, now_ms

DOC = Path(__file__).resolve().parents[3] / "docs" / "verify.md"


def public_key_of(pem: str) -> bytes:
    key = load_pem_public_key(pem.encode())
    assert isinstance(key, Ed25519PublicKey)
    return key.public_bytes_raw()


def run_steps(
    folder: Path, archive: bytes, pem: str, *, signer: Maker | None = None, status: str = "active"
) -> subprocess.CompletedProcess[str]:
    """The page's blocks on a bundle and a key set that calls its key `status`, signed by `signer`."""
    (folder / "bundle.tar").write_bytes(archive)
    (folder / "key.pem").write_text(pem)
    before, named = Maker(), public_key_of(pem)
    keys = [trust.TrustedKey(trust.kid_of(named), named, status), replace(before.key, status="retired")]
    payload = trust.make_keyset_payload(org_id=ORG, version=2, keys=keys, issued_at=now_ms())
    by = (signer or before).signer
    (folder / "keyset.json").write_text(json.dumps(trust.sign_envelope(payload, trust.PAYLOAD_KEYSET, [by]), indent=2))
    (folder / "signer.pem").write_text(public_key_pem(before.key.public))
    script = "\n".join(re.findall(r"```sh\n(.*?)```", DOC.read_text(), re.DOTALL))
    return subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)


def test_openssl_verifies_a_bundle_by_the_steps_of_the_page(tmp_path):
    maker = Maker()
    bundle = maker.bundle()
    done = run_steps(tmp_path, bundle.archive, public_key_pem(maker.key.public))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Signature Verified Successfully") == 3
    assert bundle.sha256 in done.stdout


@pytest.mark.parametrize("name", [b"spec.version=1", b'"rules"', b'"built_at"', b'"sig":"'])
def test_a_changed_byte_does_not_pass_the_steps(tmp_path, name):
    maker = Maker()
    archive = bytearray(maker.bundle().archive)
    at = archive.index(name) + len(name) + 1
    archive[at] = archive[at] ^ 1 or 65
    assert run_steps(tmp_path, bytes(archive), public_key_pem(maker.key.public)).returncode != 0


def test_another_key_does_not_pass_the_steps(tmp_path):
    done = run_steps(tmp_path, Maker().bundle().archive, public_key_pem(Maker().key.public))
    assert done.returncode != 0


def test_a_key_set_by_another_or_that_revokes_the_key_does_not_pass_the_steps(tmp_path):
    maker = Maker()
    archive, pem = maker.bundle().archive, public_key_pem(maker.key.public)
    assert run_steps(tmp_path, archive, pem).returncode == 0
    assert run_steps(tmp_path, archive, pem, signer=Maker()).returncode != 0
    assert run_steps(tmp_path, archive, pem, status="revoked").returncode != 0
