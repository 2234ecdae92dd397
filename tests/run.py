"""`make test`: the suite once on SQLite, what is marked `postgres` again on PostgreSQL; browser and fault tests once.

`python -m tests.run PART…` runs the named parts only. Each part prints how long it took and how much processor time it used.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import prepared
from tests.services import Missing, postgres, redis_server

BY_FILE = ("--dist", "loadfile", "--no-loadscope-reorder")
PARTS: dict[str, list[str]] = {
    "sqlite": ["-n", "2", *BY_FILE, "-m", "not alone and not faults"],
    # one control plane a database, each in a process of its own, side by side; what kills single services in a third
    "faults": ["-n", "3", *BY_FILE, "-m", "faults"],
    "alone": ["-n", "3", *BY_FILE, "-m", "alone and not faults"],
    # the last, alone on the machine for most of its time
    "postgres": ["-n", "4", *BY_FILE, "-m", "postgres and not faults"],
}
"""In the order in which they begin, two at a time: what mostly computes with what mostly waits for its processes."""
AT_A_TIME = 2
ON_POSTGRES = {"BYTEOR_CLOUD_DATABASE_URL": "POSTGRES", "BYTEOR_CLOUD_REDIS_URL": "REDIS"}
"""The settings of the part `postgres`, and the services that they name."""


LONGEST = (
    "tests/browser", "tests/deployments", "tests/faults", "tests/flows", "tests/model", "tests/races", "tests/recovery",
    "tests/runtime/agent/test_agent.py", "tests/storage",
)  # fmt: skip
"""Files that take long begin first, so that none is left over at the end."""


def _files(name: str) -> list[str]:
    """The test files that a part can hold tests of: those whose text names its marker. All of them for `sqlite`.

    Collecting all files takes seconds in each process, so a part does not collect what it can't run.
    """
    files = sorted(Path("tests").rglob("test_*.py"), key=lambda path: (not str(path).startswith(LONGEST), path))
    return [str(path) for path in files if name == "sqlite" or name in path.read_text()]


@contextlib.contextmanager
def _surroundings() -> Iterator[dict[str, str]]:
    """The environment of every part: nothing of a control plane's, and compiled code is kept.

    The tests start some hundred processes of the product. Where Python is set to keep no compiled code, each would compile
    all of it again: they share a folder of this run instead.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("BYTEOR_CLOUD_")}
    with tempfile.TemporaryDirectory(prefix="byteor-test-code-", ignore_cleanup_errors=True) as folder:
        if kept.pop("PYTHONDONTWRITEBYTECODE", ""):
            kept["PYTHONPYCACHEPREFIX"] = folder
        yield kept


def _pytest(name: str, environment: dict[str, str], *, live: bool) -> bool:
    """Run one part; True if it passed. Its output is shown as it comes when `live`, else at its end."""
    data = Path(tempfile.mkdtemp(prefix=f"byteor-test-{name}-"))
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *PARTS[name], *_files(name)]
    began = time.monotonic()
    if live:
        print(f"\n== {name} ==", flush=True)
    output = b""
    try:
        with subprocess.Popen(
            command,
            env={**environment, "BYTEOR_CLOUD_DATA_DIR": str(data)},
            stdout=None if live else subprocess.PIPE,
            stderr=None if live else subprocess.STDOUT,
        ) as process:
            if process.stdout is not None:
                output = process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        shutil.rmtree(data, ignore_errors=True)
    shown = "" if live else f"\n== {name} ==\n{output.decode(errors='replace')}"
    print(f"{shown}{used.ru_utime + used.ru_stime:.0f} s of processor time", flush=True)
    print(f"== {name}: {time.monotonic() - began:.0f} s ==", flush=True)
    return process.returncode == 0


def main(wanted: list[str]) -> int:
    """Exit code 0 when every part passed; a missing service that BYTEOR_TEST_REQUIRE names is a failure."""
    unknown = set(wanted) - set(PARTS)
    if unknown:
        print(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    passed: list[bool] = []
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(AT_A_TIME) as pool:
        common = stack.enter_context(_surroundings())
        common[prepared.VARIABLE] = stack.enter_context(tempfile.TemporaryDirectory(prefix="byteor-test-prepared-"))
        for name, service in (("POSTGRES", postgres), ("REDIS", redis_server)):
            try:
                common[f"BYTEOR_TEST_{name}_URL"] = stack.enter_context(service())
            except Missing as missing:
                print(f"{'MISSING' if missing.required else 'SKIPPED'} {missing}", flush=True)
                passed.append(not missing.required)
        given = {variable: common.get(f"BYTEOR_TEST_{name}_URL", "") for variable, name in ON_POSTGRES.items()}
        parts = [part for part in PARTS if not wanted or part in wanted]
        if not all(given.values()):
            parts = [part for part in parts if part != "postgres"]
        running = [
            pool.submit(_pytest, part, {**common, **given} if part == "postgres" else common, live=part == parts[0])
            for part in parts
        ]
        try:
            passed += [each.result() for each in running]
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C no further part begins
    print(f"== all: {time.monotonic() - began:.0f} s ==", flush=True)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
