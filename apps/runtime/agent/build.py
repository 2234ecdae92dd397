"""Packing the agent as one file, and the script that installs it. Runs in the control plane."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import re
import zipfile
from functools import lru_cache
from pathlib import Path

_RUNTIME = Path(__file__).resolve().parent.parent
_MAIN = '''"""The ByteOr agent."""
import sys

if sys.version_info < (3, 11):
    sys.exit("byteor-agent: Python 3.11 or newer is needed")
try:
    import cryptography  # noqa: F401
except ImportError:
    print("byteor-agent: the Python package 'cryptography' is needed on this host", file=sys.stderr)
    sys.exit(2)
from apps.runtime.agent.cli import main

sys.exit(main())
'''


def _files() -> dict[str, bytes]:
    files = {
        "__main__.py": _MAIN.encode(),
        "apps/__init__.py": b"",
    }
    for path in sorted(_RUNTIME.rglob("*.py")):
        files[f"apps/runtime/{path.relative_to(_RUNTIME).as_posix()}"] = path.read_bytes()
    library = importlib.metadata.distribution("rfc8785")
    for entry in library.files or ():
        name = entry.as_posix()
        wanted = name.startswith("rfc8785/") and name.endswith(".py")
        if wanted or "LICENSE" in name.upper():
            files[name if wanted else f"licenses/rfc8785/{entry.name}"] = Path(str(entry.locate())).read_bytes()
    return files


def packed_sha256() -> str:
    """Hex SHA-256 over the names and bytes of everything that is packed: another one is another agent."""
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(_files().items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@lru_cache(maxsize=1)
def build_pyz() -> bytes:
    """The agent as a zipapp: `apps.runtime` and the pure library it needs. The same sources give the same bytes."""
    out = io.BytesIO()
    out.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(_files().items()):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return out.getvalue()


def render_install_sh(*, base_url: str, pyz_sha256: str) -> str:
    """A readable script that installs the agent under systemd: own user, hardened unit, the digest pinned.

    `base_url` is the origin that serves `/install/byteor-agent.pyz`, from the settings. ValueError for one that can't stand in a
    shell script as it is.
    """
    if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+", base_url) or not re.fullmatch(r"[0-9a-f]{64}", pyz_sha256):
        raise ValueError("the base URL is not an origin, or the digest no digest")
    text = Path(__file__).with_name("install.sh").read_text()
    return text.replace("@BASE_URL@", base_url).replace("@SHA256@", pyz_sha256)
