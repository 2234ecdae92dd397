"""A migrated, empty SQLite database, made once in a test run: what needs one begins with a copy."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIABLE = "BYTEOR_TEST_PREPARED"
"""The folder of a whole test run (`tests.run`); without it, each test process makes one."""


@functools.cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="byteor-test-prepared-")


def _migrate(environment: Mapping[str, str]) -> None:
    command = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)


def migrated_data() -> Path:
    """A data directory to copy: a migrated database without rows, and the secrets that belong to it."""
    folder = Path(os.environ.get(VARIABLE) or _own_folder().name)
    made, draft = folder / "data", folder / "draft"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            kept = {k: v for k, v in os.environ.items() if not k.startswith(("BYTEOR_", "DJANGO_"))}
            _migrate({**kept, "BYTEOR_CLOUD_DATA_DIR": str(draft)})
            draft.rename(made)
    return made


def migrate(environment: Mapping[str, str]) -> None:
    """Migrate the new database of a control plane with these settings; on SQLite by a copy."""
    if environment.get("BYTEOR_CLOUD_DATABASE_URL"):
        _migrate(environment)
    else:
        shutil.copytree(migrated_data(), environment["BYTEOR_CLOUD_DATA_DIR"], dirs_exist_ok=True)
