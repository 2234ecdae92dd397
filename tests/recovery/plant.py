"""Web and worker as an operator runs them, on services of their own that a test may stop, kill and fill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.flows.world import ROOT, Api, free_port, until
from tests.lines import log_text
from tests.prepared import migrate

LEASE_SECONDS = "3"  # a busy machine has two seconds to renew one


class Failed(Exception):
    """A command of the hand failed, in its words."""


class Hand:
    """Does things in the plant's database."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.recovery.hand"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
            )

    def __call__(self, name: str, /, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, arguments]).encode() + b"\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["well"]

    def tries(self, name: str, /, **arguments: Any) -> Any:
        """The same until the database lets it."""

        def ask() -> tuple[Any] | None:
            try:
                return (self(name, **arguments),)
            except Failed:
                return None

        return until(ask, 40)[0]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)
        self._process.stdout.close()


class Plant:
    """A web server and a worker on one database."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.home, self.log = home, home / "log"
        port, worker_port = free_port(), free_port()
        self.url, self.worker_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{worker_port}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BYTEOR_", "DJANGO_"))}
        self.environment = {
            **kept,
            "BYTEOR_CLOUD_DATA_DIR": str(home / "data"),
            "BYTEOR_CLOUD_API_BIND_ADDR": f"127.0.0.1:{port}",
            "BYTEOR_CLOUD_WORKER_BIND_ADDR": f"127.0.0.1:{worker_port}",
            "BYTEOR_CLOUD_JOB_LEASE_SECONDS": LEASE_SECONDS,
            "BYTEOR_TEST_STUCK": str(home / "stuck"),
            "DJANGO_SETTINGS_MODULE": "tests.recovery.settings",
            **environment,
        }
        migrate(self.environment)
        self.hand = Hand(self.environment, self.log)
        self.organizations = self.hand("prepare")
        made = json.loads(self.manage("bootstrap", "--org", "Third", "--admin", "a@example.com", "--json"))
        self.api = Api(f"{self.url}/api/v1", made["token"])
        self.org_id = made["org_id"]
        self._processes = [
            self._start("manage.py", "run_web"),
            self._start("manage.py", "run_worker"),
        ]
        self.pids = [process.pid for process in self._processes]
        until(self.well, 120)

    @property
    def worker_pid(self) -> int:
        return self.pids[1]

    def manage(self, *arguments: str) -> bytes:
        command = [sys.executable, "manage.py", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, check=True, capture_output=True).stdout

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as out:
            return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=self.environment, stdout=out, stderr=out)

    def ready(self, url: str | None = None) -> tuple[int, dict[str, Any]]:
        """HTTP status and body of `/readyz`; 0 while there is no answer."""
        try:
            with urllib.request.urlopen(f"{url or self.url}/readyz", timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except OSError:
            return 0, {}

    def wrong(self, check: str) -> str:
        """What `/readyz` reports as wrong with `check`; empty when nothing."""
        checks: dict[str, str | None] = self.ready()[1].get("checks", {})
        return checks.get(check) or ""

    def well(self) -> bool:
        """Whether web and worker report that all is well."""
        return all(self.ready(url)[1].get("status") == "ready" for url in (self.url, self.worker_url))

    def logged(self, text: str) -> bool:
        """Whether the log holds `text`."""
        return text in log_text(self.log)

    def all_once(self, subjects: list[str], seconds: float = 60) -> None:
        """Wait until each has its effect and is completed; AssertionError for one that has two."""
        until(lambda: set(subjects) <= set(self.hand.tries("effects")), seconds)
        found = [s for s in self.hand.tries("effects") if s in set(subjects)]
        assert len(found) == len(set(found)) == len(subjects)
        assert {self.hand.tries("job", subject=s)["status"] for s in subjects} == {"completed"}

    def cluster(self) -> dict[str, list[int]]:
        """{role: pids} of the processes below the watchdog; `sentinel` for the cluster, `chores` for the other child."""
        found: dict[str, list[int]] = {}
        for child in children_of(self.worker_pid):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{child}/cmdline").read_bytes()
                found.setdefault("chores" if b"--chores" in line else "sentinel", []).append(child)
        for sentinel in found.get("sentinel", []):
            for child in children_of(sentinel):
                with contextlib.suppress(OSError):
                    name = Path(f"/proc/{child}/comm").read_text().strip()
                    found.setdefault(name.removeprefix("byteor-"), []).append(child)
        return found

    def whole(self) -> dict[str, list[int]]:
        """The same once every role is filled."""

        def look() -> dict[str, list[int]] | None:
            found = self.cluster()
            counts = {role: len(pids) for role, pids in found.items()}
            wanted = {"sentinel": 1, "chores": 1, "worker": 2, "monitor": 1, "pusher": 1}
            return found if counts == wanted else None

        whole: dict[str, list[int]] = until(look, 120)
        return whole

    def stop(self) -> None:
        self.hand.close()
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def children_of(pid: int) -> list[int]:
    """The processes that `pid` started."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


@contextlib.contextmanager
def plant(home: Path, **environment: str) -> Iterator[Plant]:
    """A running plant, stopped on the way out."""
    made = Plant(home, environment)
    try:
        yield made
    finally:
        made.stop()
