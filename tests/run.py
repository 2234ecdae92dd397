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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.services import Missing, postgres, redis_server

PARTS: dict[str, list[str]] = {
    "sqlite": ["-n", "2", "--dist", "loadfile", "-m", "not alone and not faults"],
    "alone": ["-n", "2", "--dist", "loadfile", "-m", "alone and not faults"],
    # one control plane a database, each in a process of its own, side by side
    "faults": ["-n", "2", "--dist", "loadfile", "-m", "faults"],
    "postgres": ["-n", "2", "--dist", "loadfile", "-m", "postgres and not faults"],
}
TOGETHER = (("sqlite",), ("alone", "faults"), ("postgres",))
"""One after another, but `alone` and `faults` side by side: both mostly wait for processes that they started."""
NEEDS_POSTGRES = frozenset({"postgres"})


def _pytest(name: str, environment: dict[str, str], *, told: bool) -> bool:
    """Run one part; whether it passed. When it is not `told` as it goes, all that it says comes at its end."""
    data = Path(tempfile.mkdtemp(prefix=f"byteor-test-{name}-"))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BYTEOR_CLOUD_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PARTS[name]]
    began = time.monotonic()
    if told:
        print(f"\n== {name} ==", flush=True)
    try:
        done = subprocess.run(
            command,
            env={**clean, "BYTEOR_CLOUD_DATA_DIR": str(data), **environment},
            check=False,
            stdout=None if told else subprocess.PIPE,
            stderr=None if told else subprocess.STDOUT,
        )
    finally:
        shutil.rmtree(data, ignore_errors=True)
    said = "" if told else f"\n== {name} ==\n{done.stdout.decode(errors='replace')}"
    print(f"{said}== {name}: {time.monotonic() - began:.0f} s ==", flush=True)
    return done.returncode == 0


def main(wanted: list[str]) -> int:
    """Exit code 0 when every part passed; a missing service that BYTEOR_TEST_REQUIRE names is a failure."""
    unknown = set(wanted) - set(PARTS)
    if unknown:
        print(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    passed: list[bool] = []
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(PARTS)) as pool:
        environment: dict[str, str] = {}
        try:
            url = stack.enter_context(postgres())
            redis_url = stack.enter_context(redis_server())
            environment = {"BYTEOR_CLOUD_DATABASE_URL": url, "BYTEOR_CLOUD_REDIS_URL": redis_url}
        except Missing as missing:
            print(f"SKIPPED {missing}", flush=True)
            passed.append(not missing.required)
        given = {"BYTEOR_TEST_POSTGRES_URL": environment["BYTEOR_CLOUD_DATABASE_URL"]} if environment else {}
        for group in TOGETHER:
            parts = [part for part in group if (not wanted or part in wanted)]
            if not environment:
                parts = [part for part in parts if part not in NEEDS_POSTGRES]
            running = [
                pool.submit(_pytest, part, environment if part in NEEDS_POSTGRES else given, told=part == parts[0])
                for part in parts
            ]
            passed += [part.result() for part in running]
    print(f"== all: {time.monotonic() - began:.0f} s ==", flush=True)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
