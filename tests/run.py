"""`make test`: the suite once on SQLite, what is marked `postgres` again on PostgreSQL; browser and fault tests once.

`python -m tests.run PART…` runs the named parts only. Each part says how long it took.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.services import REQUIRED, Missing, postgres, redis_server

PARTS: dict[str, list[str]] = {
    "sqlite": ["-n", "2", "--dist", "loadfile", "-m", "not alone and not faults"],
    "alone": ["-m", "alone and not faults"],
    # one control plane a database, each in a process of its own, side by side
    "faults": ["-n", "2", "--dist", "loadfile", "-m", "faults"],
    "postgres": ["-n", "2", "--dist", "loadfile", "-m", "postgres and not faults"],
}


def _pytest(name: str, environment: dict[str, str]) -> bool:
    """Run one part; whether it passed."""
    data = Path(tempfile.mkdtemp(prefix=f"byteor-test-{name}-"))
    print(f"\n== {name} ==", flush=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BYTEOR_CLOUD_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PARTS[name]]
    began = time.monotonic()
    try:
        done = subprocess.run(command, env={**clean, "BYTEOR_CLOUD_DATA_DIR": str(data), **environment}, check=False)
    finally:
        shutil.rmtree(data, ignore_errors=True)
    print(f"== {name}: {time.monotonic() - began:.0f} s ==", flush=True)
    return done.returncode == 0


def main(wanted: list[str]) -> int:
    """Exit code 0 when every part passed; a missing service that BYTEOR_TEST_REQUIRE names is a failure."""
    unknown = set(wanted) - set(PARTS)
    if unknown:
        print(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    parts = [name for name in PARTS if not wanted or name in wanted]
    began = time.monotonic()
    passed = [_pytest(name, {}) for name in parts if name in ("sqlite", "alone")]
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(postgres())
            redis_url = stack.enter_context(redis_server())
            environment = {"BYTEOR_CLOUD_DATABASE_URL": url, "BYTEOR_CLOUD_REDIS_URL": redis_url}
        except Missing as missing:
            print(f"SKIPPED {missing}", flush=True)
            passed.append(str(missing).split(":", 1)[0] not in REQUIRED)
            environment = {}
        if "faults" in parts:
            given = {"BYTEOR_TEST_POSTGRES_URL": environment["BYTEOR_CLOUD_DATABASE_URL"]} if environment else {}
            passed.append(_pytest("faults", given))
        if "postgres" in parts and environment:
            passed.append(_pytest("postgres", environment))
    print(f"== all: {time.monotonic() - began:.0f} s ==", flush=True)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
