"""Packing the agent as one file, and the script that installs it. Runs in the control plane."""

from __future__ import annotations

import importlib.metadata
import io
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

    `base_url` is the origin that serves `/install/byteor-agent.pyz`, from the settings.
    """
    return _INSTALL.replace("@BASE_URL@", base_url).replace("@SHA256@", pyz_sha256)


_INSTALL = """#!/bin/sh
# Installs the ByteOr agent as a systemd service with a user of its own.
# Usage: sh install.sh ENVIRONMENT_URL TOKEN_FILE
set -eu

BASE_URL='@BASE_URL@'
SHA256='@SHA256@'

[ "$#" -eq 2 ] || { echo "usage: sh install.sh ENVIRONMENT_URL TOKEN_FILE" >&2; exit 2; }
[ "$(id -u)" -eq 0 ] || { echo "run this as root" >&2; exit 2; }
ENVIRONMENT_URL=$1
TOKEN_FILE=$2

python3 -c 'import sys, cryptography; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 with the package cryptography is needed (Debian: apt install python3-cryptography)" >&2
  exit 2
}

id byteor-agent >/dev/null 2>&1 || useradd --system --home-dir /var/lib/byteor-agent --shell /usr/sbin/nologin byteor-agent
install -d -m 0755 /opt/byteor-agent
install -d -m 0700 -o byteor-agent -g byteor-agent /var/lib/byteor-agent /var/lib/byteor-agent/data
install -m 0600 -o byteor-agent -g byteor-agent "$TOKEN_FILE" /var/lib/byteor-agent/enrollment-token

draft=$(mktemp /opt/byteor-agent/.pyz.XXXXXX)
curl --fail --silent --show-error --output "$draft" "$BASE_URL/install/byteor-agent.pyz"
echo "$SHA256  $draft" | sha256sum --check --quiet || { rm -f "$draft"; echo "the digest is wrong" >&2; exit 1; }
chmod 0755 "$draft"
mv "$draft" /opt/byteor-agent/byteor-agent.pyz

cat > /etc/systemd/system/byteor-agent.service <<UNIT
[Unit]
Description=ByteOr agent
After=network-online.target
Wants=network-online.target

[Service]
User=byteor-agent
ExecStart=/usr/bin/python3 /opt/byteor-agent/byteor-agent.pyz run --environment-url $ENVIRONMENT_URL \\\\
  --enrollment-token-file /var/lib/byteor-agent/enrollment-token \\\\
  --state-dir /var/lib/byteor-agent/state --data-dir /var/lib/byteor-agent/data
Restart=always
RestartSec=2
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
LockPersonality=yes
CapabilityBoundingSet=
ReadWritePaths=/var/lib/byteor-agent

[Install]
WantedBy=multi-user.target
UNIT

systemctl daemon-reload
systemctl enable --now byteor-agent.service
echo "byteor-agent is running: systemctl status byteor-agent"
"""
