"""Waiting polls under the real server: they end when it does, and never take the last thread."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.world import ROOT, Api, free_port, until

pytestmark = pytest.mark.faults


class Server:
    """The web server as `manage.py up` starts it, on a data directory of its own."""

    def __init__(self, home: Path) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BYTEOR_", "DJANGO_"))}
        self.environment = {**kept, "BYTEOR_CLOUD_DATA_DIR": str(home), "BYTEOR_CLOUD_API_BIND_ADDR": self.url[7:]}
        self.manage("migrate", "--verbosity", "0")
        made = json.loads(self.manage("bootstrap", "--org", "Acme", "--admin", "alice@example.com", "--json"))
        self.owner = Api(f"{self.url}/api/v1", made["token"])
        command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--blocking-threads", "8", "--no-ws", "--log-level", "warning", "--workers-kill-timeout", "15"]
        # as `up` does: the server's own workers end with it, however it ends
        environment = {**self.environment, "BYTEOR_DIE_WITH_PARENT": "1"}
        self.process = subprocess.Popen([*command, "byteor.wsgi:application"], cwd=ROOT, env=environment)
        until(self._answers)
        organization = made["org_id"]
        project = self.owner.post(f"/orgs/{organization}/projects", {"name": "Shop"})["id"]
        where = f"/orgs/{organization}/projects/{project}/environments"
        self.env = f"{where}/{self.owner.post(where, {'name': 'dev', 'posture': 'dev'})['id']}"

    def manage(self, *arguments: str) -> bytes:
        command = [sys.executable, "manage.py", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, check=True).stdout

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def agent(self) -> tuple[Api, str, int]:
        """An enrolled agent's caller, its path, and the number of the directive it was told."""
        token = self.owner.post(f"{self.env}/enrollment-tokens", {})["token"]
        made = Api(self.owner.base, token).post(f"{self.env}/agents", {})
        caller, path = Api(self.owner.base, made["api_key"]), f"/agents/{made['agent_id']}"
        body = {"status": "idle", "version": "1", "running": None, "key_set_version": 1}
        answer = caller.post(f"{path}/heartbeat", body, expect=200)
        return caller, path, answer["desired"]["directive"]["directive_seq"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    yield started
    started.process.kill()
    started.process.wait()


def test_waits_end_at_once_when_the_server_is_told_to_stop(server: Server) -> None:
    agents = [server.agent() for _ in range(3)]
    answers: list[tuple[int, Any]] = []

    def wait(caller: Api, path: str, seq: int) -> None:
        answers.append(caller.call("GET", f"{path}/deployment?wait=25&after={seq}"))

    threads = [threading.Thread(target=wait, args=agent) for agent in agents]
    for thread in threads:
        thread.start()
    time.sleep(1)
    start = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(20)
    server.process.wait(20)
    assert [status for status, _ in answers] == [204, 204, 204]
    assert time.monotonic() - start < 3


def test_people_are_served_while_more_agents_poll_than_there_are_threads(server: Server) -> None:
    agents = [server.agent() for _ in range(12)]
    stop = threading.Event()

    def poll(caller: Api, path: str, seq: int) -> None:
        while not stop.is_set():
            assert caller.call("GET", f"{path}/deployment?wait=5&after={seq}")[0] == 204
            stop.wait(0.2)

    threads = [threading.Thread(target=poll, args=agent) for agent in agents]
    for thread in threads:
        thread.start()
    time.sleep(1)
    slowest = 0.0
    for _ in range(10):
        start = time.monotonic()
        assert len(server.owner.get(f"{server.env}/agents")["results"]) == 12
        slowest = max(slowest, time.monotonic() - start)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert slowest < 2
