"""The web server as a process of its own."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from tests.flows.world import ROOT, Api, free_port, until
from tests.prepared import migrate


def _environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BYTEOR_", "DJANGO_"))}
    return {**kept, "BYTEOR_CLOUD_DATA_DIR": str(home)}


@functools.cache
def _prepared() -> tuple[tempfile.TemporaryDirectory[str], dict[str, str]]:
    """A data directory with an organization in it, and the output of `bootstrap`: made once, each server begins with a copy."""
    made = tempfile.TemporaryDirectory(prefix="byteor-test-prepared-")

    def manage(*arguments: str) -> bytes:
        command = [sys.executable, "manage.py", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=_environment(Path(made.name)), capture_output=True, check=True
        ).stdout

    migrate(_environment(Path(made.name)))
    return made, json.loads(manage("bootstrap", "--org", "Acme", "--admin", "alice@example.com", "--json"))


class Server:
    """`manage.py run_web` on a data directory of its own (SQLite), with an organization and an environment. Its lines go to the
    file `log` when there is one, else where this process's go."""

    def __init__(self, home: Path, *, log: Path | None = None) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.environment = {**_environment(home), "BYTEOR_CLOUD_API_BIND_ADDR": self.url[7:]}
        prepared, made = _prepared()
        shutil.copytree(prepared.name, home, dirs_exist_ok=True)
        self.owner = Api(f"{self.url}/api/v1", made["token"])
        with contextlib.ExitStack() as stack:
            lines = stack.enter_context(log.open("ab")) if log is not None else None
            command = [sys.executable, "manage.py", "run_web"]
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=lines, stderr=lines)
        until(self._answers, 120)
        organization = made["org_id"]
        project = self.owner.post(f"/orgs/{organization}/projects", {"name": "Shop"})["id"]
        where = f"/orgs/{organization}/projects/{project}/environments"
        self.env = f"{where}/{self.owner.post(where, {'name': 'dev', 'posture': 'dev'})['id']}"

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def agent(self) -> tuple[Api, str, int]:
        """An enrolled agent's caller, its path, and the number of its directive."""
        token = self.owner.post(f"{self.env}/enrollment-tokens", {})["token"]
        made = Api(self.owner.base, token).post(f"{self.env}/agents", {})
        caller, path = Api(self.owner.base, made["api_key"]), f"/agents/{made['agent_id']}"
        body = {"status": "idle", "version": "1", "running": None, "key_set_version": 1}
        answer = caller.post(f"{path}/heartbeat", body, expect=200)
        return caller, path, answer["desired"]["directive"]["directive_seq"]

    @property
    def worker(self) -> int:
        """The process id of the one that serves."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
