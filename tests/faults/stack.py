"""A control plane that is kept running whatever dies: web, worker, database, and agents on hosts of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apps.core.processes import die_with_parent
from apps.runtime.faults import VARIABLE
from tests.flows.world import ROOT, free_port, fresh_database, until
from tests.prepared import migrate
from tests.services import Missing, postgres

LEASE_SECONDS = "1.5"


class Points:
    """The folder that names the point at which one process ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def arm(self, point: str, skip: int = 0, action: str = "kill") -> None:
        """Let the process that reaches `point` after `skip` times die (or wait) there."""
        for name in ("hit", "go"):
            (self.folder / name).unlink(missing_ok=True)
        draft = self.folder / ".draft"
        draft.write_text(json.dumps({"point": point, "skip": skip, "action": action}))
        draft.replace(self.folder / "armed")

    def hit(self) -> dict[str, Any] | None:
        """The process that reached it; None while none has."""
        with contextlib.suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads((self.folder / "hit").read_text())
            return found
        return None

    def disarm(self) -> None:
        (self.folder / "armed").unlink(missing_ok=True)

    def release(self) -> None:
        """Let go on what waits."""
        (self.folder / "go").touch()


class Service:
    """One process that is started again whenever it ends, as systemd does it, until it is stopped."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name, self.command, self.environment, self.log = name, command, environment, log
        self.starts = 0
        self._wanted = True
        self._lock = threading.Lock()
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *self.command],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # however the test run ends, nothing of it goes on
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def look(self) -> None:
        """Start it again if it has ended."""
        with self._lock:
            if self._wanted and self._process.poll() is not None:
                self._process = self._start()

    def pause(self) -> None:
        """End it by SIGKILL, and leave it ended until `go_on`."""
        with self._lock:
            self._wanted = False
            self._process.kill()
            self._process.wait()

    def go_on(self) -> None:
        self._wanted = True
        self.look()

    def stop(self) -> None:
        with self._lock:
            self._wanted = False
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
                try:
                    self._process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()


class Stack:
    """A control plane on one database, and a process that looks into that database with the models."""

    def __init__(self, vendor: str, home: Path, database_url: str | None) -> None:
        self.vendor, self.home = vendor, home
        port, worker_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.points = Points(home / "faults")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BYTEOR_", "DJANGO_"))}
        self.agent_environment = kept
        self.environment = {
            **kept,
            "BYTEOR_CLOUD_DATA_DIR": str(home / "data"),
            "BYTEOR_CLOUD_API_BIND_ADDR": f"127.0.0.1:{port}",
            "BYTEOR_CLOUD_WORKER_BIND_ADDR": f"127.0.0.1:{worker_port}",
            "BYTEOR_CLOUD_JOB_LEASE_SECONDS": LEASE_SECONDS,
            VARIABLE: str(self.points.folder),
        }
        if database_url:
            self.environment["BYTEOR_CLOUD_DATABASE_URL"] = database_url
        self.services: list[Service] = []
        self._watching = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        if not database_url:
            migrate(self.environment)
        self._inspector = self._open_inspector()
        self.tokens: dict[str, str] = self.look_into("prepare")
        self.org_id = self.tokens["org_id"]
        self.web = self.serve("web", ["manage.py", "run_web"])
        self.worker = self.serve("worker", ["manage.py", "run_worker"])
        self._watcher.start()
        until(self.ready, 120)

    def _open_inspector(self) -> subprocess.Popen[str]:
        environment = {k: v for k, v in self.environment.items() if k != VARIABLE}
        with (self.home / "inspector.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.faults.inspector"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def look_into(self, question: str, **given: Any) -> Any:
        """The answer of `tests.faults.inspector` to one question."""
        pipe_in, pipe_out = self._inspector.stdin, self._inspector.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        pipe_in.write(json.dumps({"question": question, "given": given}) + "\n")
        pipe_in.flush()
        answer = json.loads(pipe_out.readline() or '{"error": "the inspector has ended"}')
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def serve(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> Service:
        """Run a program and keep it running."""
        service = Service(name, command, environment or self.environment, self.home / f"{name}.log")
        self.services.append(service)
        return service

    def dismiss(self, service: Service) -> None:
        self.services.remove(service)
        service.stop()

    def _watch(self) -> None:
        while not self._watching.wait(0.05):
            for service in list(self.services):
                service.look()

    def ready(self) -> bool:
        """Does the control plane report that all is well?"""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=3) as answer:
                return bool(json.load(answer)["status"] == "ready")
        except OSError:
            return False

    def stop(self) -> None:
        self._watching.set()
        self._watcher.join(timeout=5)
        self._inspector.communicate()  # the end of its input is its end
        for service in reversed(self.services):
            service.stop()

    def log_tail(self, lines: int = 25) -> str:
        """The end of every service's log, for a case that failed."""
        tails = []
        for path in sorted(self.home.glob("*.log")):
            lines_of_one = [
                line[:600] for line in path.read_text(errors="replace").splitlines() if "readyz" not in line
            ]
            tails += [f"--- {path.name}", *lines_of_one[-lines:]]
        return "\n".join(tails)


@contextlib.contextmanager
def running(vendor: str, home: Path) -> Iterator[Stack]:
    """A control plane on `sqlite` or `postgres`. Raises Missing when there is no PostgreSQL to be had."""
    with contextlib.ExitStack() as kept:
        url = None
        if vendor == "postgres":
            url = kept.enter_context(fresh_database(kept.enter_context(postgres())))
        stack = Stack(vendor, home, url)
        try:
            yield stack
        finally:
            stack.stop()


__all__ = ["Missing", "Points", "Service", "Stack", "running"]
