"""`make test`: the whole suite once on SQLite, then what is marked `postgres` again on PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.services import REQUIRED, Missing, postgres, redis_server


def _pytest(name: str, arguments: list[str], environment: dict[str, str]) -> int:
    data = Path(tempfile.mkdtemp(prefix=f"byteor-test-{name}-"))
    print(f"\n== {name} ==", flush=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BYTEOR_CLOUD_")}
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(
            command, env={**clean, "BYTEOR_CLOUD_DATA_DIR": str(data), **environment}, check=False
        ).returncode
    finally:
        shutil.rmtree(data, ignore_errors=True)


def main() -> int:
    """Exit code 0 when every part passed; a missing service that BYTEOR_TEST_REQUIRE names is a failure."""
    failed = _pytest("sqlite", ["-n", "2", "-m", "not alone", "--dist", "loadfile"], {})
    failed |= _pytest("alone", ["-m", "alone"], {})
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(postgres())
            redis_url = stack.enter_context(redis_server())
        except Missing as missing:
            print(f"SKIPPED {missing}", flush=True)
            required = str(missing).split(":", 1)[0] in REQUIRED
            return 1 if failed or required else 0
        environment = {"BYTEOR_CLOUD_DATABASE_URL": url, "BYTEOR_CLOUD_REDIS_URL": redis_url}
        failed |= _pytest("postgres", ["-n", "2", "-m", "postgres", "--dist", "loadfile"], environment)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
