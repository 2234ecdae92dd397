"""`docs/verify.md` works as it is written: its blocks are run on a real bundle."""

import re
import subprocess
from pathlib import Path

import pytest

from apps.runtime.trust import public_key_pem
from tests.runtime.making import Maker

DOC = Path(__file__).resolve().parents[3] / "docs" / "verify.md"


def run_steps(folder: Path, archive: bytes, pem: str) -> subprocess.CompletedProcess[str]:
    (folder / "bundle.tar").write_bytes(archive)
    (folder / "key.pem").write_text(pem)
    script = "\n".join(re.findall(r"```sh\n(.*?)```", DOC.read_text(), re.DOTALL))
    return subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)


def test_openssl_verifies_a_bundle_by_the_steps_of_the_page(tmp_path):
    maker = Maker()
    bundle = maker.bundle()
    done = run_steps(tmp_path, bundle.archive, public_key_pem(maker.key.public))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Signature Verified Successfully") == 2
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
