"""`make lint`'s last step: Django's checks in every profile, missing migrations, and the project's vocabulary."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile

from tests import vocabulary

KEY = "kek-1:" + base64.b64encode(bytes(range(32))).decode()
HOSTED = {
    "BYTEOR_CLOUD_SECRET_KEY": "not-a-secret-only-for-the-check-" + "0123456789abcdefghijklmnopqrstuvwxyz" * 2,
    "BYTEOR_CLOUD_KEY_ENCRYPTION_KEYS": KEY,
    "BYTEOR_CLOUD_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
    "BYTEOR_CLOUD_REDIS_URL": "redis://127.0.0.1:1/0",
    "BYTEOR_CLOUD_STORAGE_URL": "s3://bundles/prefix",
    "BYTEOR_CLOUD_TRUSTED_PROXIES": "10.0.0.0/8",
}


def _manage(data: str, environment: dict[str, str], *arguments: str) -> int:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BYTEOR_CLOUD_")}
    print("manage.py", *arguments, environment.get("BYTEOR_CLOUD_PROFILE", "local"), flush=True)
    command = [sys.executable, "manage.py", *arguments]
    return subprocess.run(command, env={**clean, "BYTEOR_CLOUD_DATA_DIR": data, **environment}, check=False).returncode


def main() -> int:
    """0 when all of it is clean."""
    with tempfile.TemporaryDirectory() as data:
        failed = _manage(data, {}, "makemigrations", "--check", "--dry-run")
        for profile in ("development", "staging", "production"):
            environment = {**HOSTED, "BYTEOR_CLOUD_PROFILE": profile}
            failed |= _manage(data, environment, "check", "--deploy", "--fail-level", "WARNING")
    print("vocabulary", flush=True)
    failed |= vocabulary.main()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
