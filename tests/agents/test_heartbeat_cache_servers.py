"""What one web process does to an agent is known to the others, with the heartbeat cache of each and without it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.flows.world import ROOT, Api, free_port, fresh_database, until, within
from tests.services import Missing, postgres, without

pytestmark = pytest.mark.alone

BODY = {"status": "idle", "version": "1", "running": None, "key_set_version": 1}


class Pair:
    """Two web servers on one PostgreSQL database, as on two machines: each with a data directory of its own."""

    def __init__(self, home: Path, database: str, *, cache: str) -> None:
        self.database = database
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BYTEOR_CLOUD_", "DJANGO_"))}
        self.environment = {
            **kept,
            "BYTEOR_CLOUD_DATABASE_URL": database,
            "BYTEOR_CLOUD_DATA_DIR": str(home),
            "BYTEOR_CLOUD_HEARTBEAT_CACHE": cache,
        }
        self._manage("migrate", "--verbosity", "0")
        made = json.loads(self._manage("bootstrap", "--org", "Acme", "--admin", "alice@example.com", "--json"))
        ports = [free_port(), free_port()]
        self.servers = [
            subprocess.Popen(
                [sys.executable, "manage.py", "run_web"],
                cwd=ROOT,
                env={**self.environment, "BYTEOR_CLOUD_API_BIND_ADDR": f"127.0.0.1:{port}"},
            )
            for port in ports
        ]
        self.bases = [f"http://127.0.0.1:{port}/api/v1" for port in ports]
        self.owner = Api(self.bases[0], made["token"])
        for base in self.bases:
            until(lambda base=base: self._answers(base), 120)  # type: ignore[misc]
        organization = made["org_id"]
        project = self.owner.post(f"/orgs/{organization}/projects", {"name": "Shop"})["id"]
        where = f"/orgs/{organization}/projects/{project}/environments"
        self.env = f"{where}/{self.owner.post(where, {'name': 'dev', 'posture': 'dev'})['id']}"

    def _manage(self, *arguments: str) -> bytes:
        command = [sys.executable, "manage.py", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, check=True).stdout

    def _answers(self, base: str) -> bool:
        try:
            return Api(base, None).call("GET", "/me")[0] == 401
        except OSError:
            return False

    def agent(self) -> tuple[str, list[Api]]:
        """An enrolled agent's id, and its caller at each server, both of which have answered it."""
        token = self.owner.post(f"{self.env}/enrollment-tokens", {})["token"]
        made = Api(self.bases[0], token).post(f"{self.env}/agents", {})
        callers = [Api(base, made["api_key"]) for base in self.bases]
        for _ in range(4):
            for caller in callers:
                assert self.beat(made["agent_id"], caller) == 200
            time.sleep(0.1)
        return made["agent_id"], callers

    def beat(self, agent_id: str, caller: Api) -> int:
        return caller.call("POST", f"/agents/{agent_id}/heartbeat", BODY)[0]

    def last_seen(self, agent_id: str) -> float:
        with psycopg.connect(self.database) as raw:
            row: Any = raw.execute("SELECT last_seen_at FROM agents_agent WHERE id = %s", (agent_id,)).fetchone()
        return float(row[0].timestamp())


@pytest.fixture(scope="module", params=["true", "false"], ids=["cached", "uncached"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    try:
        with postgres() as url, fresh_database(url) as database:
            made = Pair(tmp_path_factory.mktemp("pair"), database, cache=request.param)
            yield made
            for server in made.servers:
                server.kill()
                server.wait()
    except Missing as missing:
        without(missing)


def test_a_key_revoked_at_one_is_refused_at_the_other_within_a_second(pair: Pair) -> None:
    agent_id, callers = pair.agent()
    status, _ = pair.owner.call("POST", f"{pair.env}/agents/{agent_id}/revoke-key", {})
    assert status == 200
    within(1, lambda: pair.beat(agent_id, callers[1]) == 401)
    assert pair.beat(agent_id, callers[0]) == 401


def test_a_key_ended_by_hand_in_the_database_is_refused_at_both_within_a_second(pair: Pair) -> None:
    agent_id, callers = pair.agent()
    with psycopg.connect(pair.database, autocommit=True) as raw:
        raw.execute("UPDATE agents_agentkey SET revoked_at = now() WHERE agent_id = %s", (agent_id,))
    for caller in callers:
        within(1, lambda caller=caller: pair.beat(agent_id, caller) == 401)  # type: ignore[misc]


def test_that_an_agent_was_seen_is_in_the_database_soon_after_and_when_the_server_stops(pair: Pair) -> None:
    agent_id, callers = pair.agent()
    began = time.time()
    assert pair.beat(agent_id, callers[1]) == 200
    until(lambda: pair.last_seen(agent_id) >= began)
    last = time.time()
    assert pair.beat(agent_id, callers[1]) == 200
    pair.servers[1].send_signal(signal.SIGTERM)
    pair.servers[1].wait(30)
    assert pair.last_seen(agent_id) >= last
