"""The product as a stranger runs it: `manage.py up` in a directory of its own, people by command, real agents."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.lines import log_text
from tests.prepared import migrate
from tests.services import free_port

ROOT = Path(__file__).resolve().parents[2]

SPEC = """\
spec.version=1
pipeline.name=orders
pipeline.target=SingleRing
single_ring.stages.0.id=redact
single_ring.stages.0.op=dataguard_redact
"""


def until(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    """`what()` as soon as it is true; AssertionError after `seconds`.

    It is asked less often the longer it takes: asking costs the processor that what is waited for needs.
    """
    deadline = time.monotonic() + seconds
    pause = 0.05
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < deadline, f"did not come true in {seconds} s: {what}"
        time.sleep(pause)
        pause = min(pause * 1.25, 0.3)


def within(seconds: float, what: Callable[[], Any]) -> Any:
    """`what()` as soon as it is true; AssertionError when a call of it that began after `seconds` was not.

    For what holds from a moment on: how long the machine takes for a call makes no difference.
    """
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        value = what()
        if value:
            return value
        assert began < deadline, f"is not true after {seconds} s: {what}"
        time.sleep(0.05)


def config(*rules: str) -> dict[str, Any]:
    """A configuration that redacts a file by `rules`."""
    return {
        "adapters": {
            "ingress": {"type": "file", "path": "in.jsonl"},
            "egress": {"type": "file", "path": "out.jsonl"},
        },
        "stages": {"redact": {"rules": list(rules)}},
    }


@dataclass
class Api:
    """HTTP with one person's token."""

    base: str
    token: str | None

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.base + path, data, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=40) as answer:
                raw = answer.read()
                return answer.status, json.loads(raw) if raw else None
        except urllib.error.HTTPError as error:
            raw = error.read()
            return error.code, json.loads(raw) if raw else None

    def download(self, path: str) -> bytes:
        """The bytes of an answer that is no JSON."""
        request = urllib.request.Request(self.base + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=40) as answer:
            return bytes(answer.read())

    def get(self, path: str) -> Any:
        status, body = self.call("GET", path)
        assert status == 200, (status, body)
        return body

    def post(self, path: str, body: Any = None, expect: int = 201, **headers: str) -> Any:
        status, answer = self.call("POST", path, body, **headers)
        assert status == expect, (status, answer)
        return answer


@dataclass
class World:
    """A running control plane and what was made in it."""

    home: Path
    environment: dict[str, str]
    url: str
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    pid: int = 0

    @property
    def api(self) -> str:
        return f"{self.url}/api/v1"

    def manage(self, *arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments, "--json"],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            check=True,
        )
        return json.loads(done.stdout)

    def person(self, email: str, org_id: str, role: str) -> tuple[Api, dict[str, Any]]:
        made = self.manage("create_person", "--email", email, "--org-id", org_id, "--role", role)
        return Api(self.api, made["token"]), made

    def agent(self, name: str, environment_url: str, token: str) -> Path:
        """Start a real agent from the program that the control plane serves; its home folder."""
        program = self.home / "byteor-agent.pyz"
        if not program.exists():
            with urllib.request.urlopen(f"{self.url}/install/byteor-agent.pyz", timeout=20) as answer:
                program.write_bytes(answer.read())
        home = self.home / "hosts" / name
        (home / "data").mkdir(parents=True)
        (home / "data" / "in.jsonl").touch()
        with (home / "log").open("wb") as log:
            command = [sys.executable, str(program), "run", "--environment-url", environment_url, "--name", name]
            command += ["--state-dir", str(home / "state"), "--data-dir", str(home / "data")]
            environment = {**os.environ, "BYTEOR_ENROLLMENT_TOKEN": token}
            self.children.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return home


@contextlib.contextmanager
def fresh_database(given: str) -> Iterator[str]:
    """The URL of a database of its own on the server of the `given` one."""
    name = f"byteor_flow_{secrets.token_hex(6)}"
    with psycopg.connect(given, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    try:
        yield f"{given.rsplit('/', 1)[0]}/{name}"
    finally:
        with psycopg.connect(given, autocommit=True) as server:
            server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextlib.contextmanager
def running(home: Path, *arguments: str, migrated: bool = True) -> Iterator[World]:
    """`manage.py up` on free ports; on PostgreSQL and Redis when the test run names them. Ended on the way out.

    On SQLite its database is `migrated` already, unless the test is about a first start.
    """
    port, worker_port = free_port(), free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("BYTEOR_CLOUD_", "DJANGO_"))}
    environment |= {
        "BYTEOR_CLOUD_DATA_DIR": str(home / "data"),
        "BYTEOR_CLOUD_API_BIND_ADDR": f"127.0.0.1:{port}",
        "BYTEOR_CLOUD_WORKER_BIND_ADDR": f"127.0.0.1:{worker_port}",
    }
    with contextlib.ExitStack() as stack:
        given = os.environ.get("BYTEOR_CLOUD_DATABASE_URL", "")
        if given.startswith("postgres"):
            fresh = stack.enter_context(fresh_database(given))
            environment["BYTEOR_CLOUD_DATABASE_URL"] = fresh
            environment["BYTEOR_CLOUD_REDIS_URL"] = os.environ.get("BYTEOR_CLOUD_REDIS_URL", "")
        elif migrated:
            migrate(environment)
        log = (home / "up.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "manage.py", "up", *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        world = World(home, environment, f"http://127.0.0.1:{port}", pid=process.pid)

        def ready() -> bool:
            assert process.poll() is None, log_text(home / "up.log")
            try:
                with urllib.request.urlopen(f"{world.url}/readyz", timeout=10) as answer:
                    return bool(json.load(answer)["status"] == "ready")
            except OSError:
                return False

        try:
            until(ready, 120)
            yield world
        finally:
            for child in [*world.children, process]:
                child.send_signal(signal.SIGTERM)
            for child in [*world.children, process]:
                try:
                    child.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
            log.close()
