"""`manage.py spec`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import call_command

ROOT = Path(__file__).parents[2]


def test_the_exit_status_and_the_lines_are_the_compilers() -> None:
    command = [sys.executable, "manage.py", "spec"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
        )

    good, wrong = "docs/examples/01-passthrough.kv", "docs/examples/11-refused-text.kv"
    accepted = run("validate", good)
    assert (accepted.returncode, accepted.stdout) == (0, "")
    refused = run("validate", wrong)
    assert refused.returncode == 1
    assert refused.stdout.startswith(f"{wrong}:2: space_around_equals: ")
    assert run("hash", good).stdout.startswith("sha256:")
    assert run("nonsense").returncode == 2


def test_it_can_be_called_from_code(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("spec", "hash", str(ROOT / "docs/examples/01-passthrough.kv"))
    assert capsys.readouterr().out.startswith("sha256:")
    with pytest.raises(SystemExit) as stopped:
        call_command("spec", "validate", str(ROOT / "docs/examples/11-refused-text.kv"))
    assert stopped.value.code == 1
