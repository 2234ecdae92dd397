"""`make soak`: what the suite has in a short form, at length. `python -m tests.soak NAME…` runs the named ones only.

Each is a file of tests and the environment in which it is long; a variable that is set already stays as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

SOAKS: dict[str, tuple[str, dict[str, str]]] = {
    "rotation": ("tests/runtime/agent/test_rotation_walks.py", {"BYTEOR_SOAK_WALKS": "200"}),
    "worlds": (
        "tests/runtime/agent/test_small_worlds.py",
        {"BYTEOR_SOAK_STEPS": "6", "BYTEOR_SOAK_WORLDS": "20000"},
    ),
    "lines": ("tests/runtime/agent/test_files.py", {"BYTEOR_SOAK_EXAMPLES": "5000"}),
    "hostile": ("tests/runtime/attacks/test_hostile_answers.py", {"BYTEOR_HOSTILE_EXAMPLES": "500"}),
    "sign-in": ("tests/access/test_sign_in.py", {"BYTEOR_GUESSES": "10000"}),
    "services": ("tests/model/test_services_machine.py", {"BYTEOR_MODEL_EXAMPLES": "300"}),
}


def main(wanted: list[str]) -> int:
    """Exit code 0 when all passed."""
    unknown = set(wanted) - set(SOAKS)
    if unknown:
        print(f"no such soak: {', '.join(sorted(unknown))}; there are {', '.join(SOAKS)}", file=sys.stderr)
        return 2
    failed = []
    for name, (path, environment) in SOAKS.items():
        if wanted and name not in wanted:
            continue
        print(f"\n== {name} ==", flush=True)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"byteor-soak-{name}-") as data:
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", path]
            given = {**os.environ, "BYTEOR_CLOUD_DATA_DIR": data, **environment}
            given |= {variable: os.environ[variable] for variable in environment if variable in os.environ}
            if subprocess.run(command, env=given, check=False).returncode:
                failed.append(name)
        print(f"== {name}: {time.monotonic() - began:.0f} s ==", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
