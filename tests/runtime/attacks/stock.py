"""What verifiers that we did not write find of a signature: securesystemslib's DSSE, and openssl on the bytes that DSSE signs.

They know nothing of bundles, sequences, environments or key sets. Where they accept the signature and the agent refuses all the same,
the attack is one that a signature can't show, and the test names the check that can.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from apps.runtime.trust import TrustedKey, public_key_pem


def _by_securesystemslib(envelope: Mapping[str, Any], key: TrustedKey) -> bool:
    theirs = SSlibKey(key.kid, "ed25519", "ed25519", {"public": key.public.hex()})
    try:
        # it changes what it is given
        Envelope.from_dict(copy.deepcopy(dict(envelope))).verify([theirs], 1)
    except VerificationError:
        return False
    return True


def _by_openssl(envelope: Mapping[str, Any], key: TrustedKey) -> bool:
    kind, payload = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"])
    signed = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "key.pem").write_text(public_key_pem(key.public))
        (here / "signed").write_bytes(signed)
        for signature in envelope["signatures"]:
            if signature["keyid"] != key.kid:
                continue
            (here / "sig").write_bytes(base64.b64decode(signature["sig"]))
            command = [
                "openssl",
                "pkeyutl",
                "-verify",
                "-pubin",
                "-inkey",
                "key.pem",
                "-rawin",
                "-in",
                "signed",
                "-sigfile",
                "sig",
            ]
            done = subprocess.run(command, cwd=here, capture_output=True, check=False)
            if done.returncode == 0:
                return True
    return False


def signed_by(envelope: Mapping[str, Any], *keys: TrustedKey) -> bool:
    """Did one of `keys` sign it? Both are asked, and must agree."""
    verdicts = {(_by_securesystemslib(envelope, key), _by_openssl(envelope, key)) for key in keys}
    assert verdicts <= {(True, True), (False, False)}, "the stock verifiers don't agree"
    return (True, True) in verdicts


def members(archive: bytes) -> dict[str, bytes]:
    """The files of a bundle, by the standard library's tar."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]


def envelope_of(archive: bytes) -> dict[str, Any]:
    """The envelope in a bundle."""
    return dict(json.loads(members(archive)["manifest.dsse.json"]))


def packed(files: Mapping[str, bytes]) -> bytes:
    """A bundle of these files, as ours is packed."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(files[name]), 0o644, 0
            tar.addfile(info, io.BytesIO(files[name]))
    return out.getvalue()
