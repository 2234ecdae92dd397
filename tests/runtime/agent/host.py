"""A machine with the real agent on it, packed as it is served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from apps.runtime.agent.build import build_pyz
from apps.runtime.faults import VARIABLE
from tests.lines import json_lines, log_text
from tests.runtime.agent.fake_control_plane import ControlPlane
from tests.runtime.agent.waiting import until


class Host:
    """A machine with the agent on it."""

    def __init__(self, home: Path, plane: ControlPlane) -> None:
        self.home, self.plane = home, plane
        self.data = home / "data"
        self.data.mkdir()
        (self.data / "in.jsonl").touch()
        self.program = home / "byteor-agent.pyz"
        self.program.write_bytes(build_pyz())
        self.process: subprocess.Popen[bytes] | None = None
        self.fed = 0
        self.options: tuple[str, ...] = ()
        self.faults = home / "faults"
        self.faults.mkdir()

    def command(self, *extra: str) -> list[str]:
        return [sys.executable, str(self.program), "run", "--state-dir", "state",
                "--data-dir", str(self.data), *self.options, *extra]  # fmt: skip

    def start(self) -> None:
        url = ("--environment-url", self.plane.environment_url, "--enrollment-token", "byt_enr_test")
        with (self.home / "log").open("ab") as log:
            environment = {**os.environ, VARIABLE: str(self.faults)}
            self.process = subprocess.Popen(self.command(*url), stdout=log, stderr=log, cwd=self.home, env=environment)

    def kill(self) -> None:
        """SIGKILL, as a machine that loses its power would end it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=30)
            self.process = None

    def feed(self) -> dict[str, Any]:
        """One record in; what comes out of it."""
        self.fed += 1
        with (self.data / "in.jsonl").open("a") as out:
            out.write(json.dumps({"n": self.fed, "secret": "s", "name": "ann"}) + "\n")

        def emitted() -> dict[str, Any] | None:
            return next((row for row in self.emitted() if row["n"] == self.fed), None)

        found: dict[str, Any] = until(emitted)
        return found

    def break_pipeline(self) -> None:
        """The pipeline ends by an error of its own with the next record that it processes."""
        (self.faults / "armed").write_text(json.dumps({"point": "agent.record.processed", "action": "fail"}))

    def write(self, *records: object) -> None:
        """Records for the pipeline, as lines."""
        with (self.data / "in.jsonl").open("a") as out:
            out.write("".join(json.dumps(record) + "\n" for record in records))

    def emitted(self) -> list[Any]:
        """What has come out so far."""
        return json_lines(self.data / "out.jsonl")

    def beat(self, *, ok: bool, words: str = "") -> dict[str, Any]:
        """Wait for a new heartbeat that satisfies this."""
        seen = len(self.plane.beats)

        def found() -> dict[str, Any] | None:
            beats = [b for b in self.plane.beats[seen:] if b["health"]["ok"] is ok and words in b["health"]["detail"]]
            return beats[0] if beats else None

        beat: dict[str, Any] = until(found)
        return beat

    def log(self) -> str:
        return log_text(self.home / "log")

    def reported(self, status: str, code: str = "") -> dict[str, Any]:
        found: dict[str, Any] = until(
            lambda: next((r for r in self.plane.reports if r["status"] == status and code in r["reason"]), None)
        )
        return found
