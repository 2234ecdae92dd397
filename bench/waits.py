"""2,000 agents wait in one web process; one deployment goes to all of them.

Ours: `manage.py run_web` on PostgreSQL, an agent's whole poll with authentication, numbering and signing. The peer
(`bench.waits_peer`): an asyncio server that is woken by the same notifications and for each answer does one indexed read and one
committed update on the same database and signs one directive. Both are called by the same client, a process of its own. The
clock starts when the deployment's last transaction (which assigns it) is committed, and stops with the last answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psycopg

from bench.control_plane import control_plane, log_in_a_file
from bench.measure import report
from bench.road import _command, _running
from tests.flows.world import SPEC, config, free_port, until

AGENTS = int(os.environ.get("BENCH_AGENTS", "2000"))
SETTLE_SECONDS = 8
"""After the polls were sent, until all of them wait."""
ROOT = Path(__file__).resolve().parents[1]


class Client:
    """A process that makes one request on each of many connections, and reports when each was answered."""

    def __init__(self, port: int, requests: list[tuple[str, str]]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.waits"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([port, requests]))
        self._process.stdin.close()

    def sent(self) -> None:
        """Once every request was sent."""
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def answers(self) -> list[tuple[int, float]]:
        """(status, epoch seconds) of each."""
        assert self._process.stdout is not None
        found = json.loads(self._process.stdout.readline())
        self._process.wait()
        return [(status, at) for status, at in found]


async def _call_all(port: int, requests: list[tuple[str, str]]) -> None:
    gate = asyncio.Semaphore(100)
    left = len(requests)
    sent = asyncio.Event()

    async def call(path: str, token: str) -> tuple[int, float]:
        nonlocal left
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n"
            writer.write(head.encode())
            await writer.drain()
        left -= 1
        if not left:
            sent.set()
        line = await reader.readline()
        at = time.time()
        writer.close()
        return int(line.split()[1]) if line else 0, at

    calls = [asyncio.ensure_future(call(path, token)) for path, token in requests]
    await sent.wait()
    print("sent", flush=True)
    print(json.dumps(await asyncio.gather(*calls)), flush=True)


class Fleet:
    """An environment with many agents, where a deployment needs no approval."""

    def __init__(self, count: int) -> None:
        from apps.access import services as access
        from apps.access import tokens
        from apps.access.principals import person_principal
        from apps.agents.models import Agent, AgentKey
        from apps.core import clock
        from apps.jobs.runner import drain
        from bench.control_plane import Application
        from byteor.wsgi import application
        from tests.support import make_tenant

        tenant = make_tenant()
        self.app = Application(application)
        self.drain = drain
        self.token = access.create_token(actor=person_principal(tenant.people["alice"]), name="bench").text.reveal()
        self.where = f"/api/v1{tenant.path(tenant.dev)}"
        minted = [tokens.mint("agt") for _ in range(count)]
        now = clock.now()
        agents = Agent.objects.bulk_create(
            [Agent(environment=tenant.dev, name=f"host-{n}", last_seen_at=now) for n in range(count)]
        )
        AgentKey.objects.bulk_create(
            [
                AgentKey(agent=agent, sha256=key.sha256, public_id=key.public_id, first_used_at=now, last_used_at=now)
                for agent, key in zip(agents, minted, strict=True)
            ]
        )
        self.keys = {agent.pk: key.text.reveal() for agent, key in zip(agents, minted, strict=True)}
        draft = self.app.json("POST", f"{self.where}/drafts", {"name": "orders", "spec": SPEC}, self.token, 201)
        drain()
        promote = f"{self.where}/drafts/{draft['id']}/promote"
        self.version = self.app.json("POST", promote, {}, self.token, 201)["id"]
        self.number = 0

    def polls(self) -> list[tuple[str, str]]:
        """What the agents ask: for anything above the directive they received last."""
        from apps.agents.models import Agent

        latest: dict[uuid.UUID, int] = dict(Agent.objects.values_list("pk", "directive_seq"))
        return [(f"/api/v1/agents/{pk}/deployment?wait=30&after={latest[pk]}", key) for pk, key in self.keys.items()]

    def deploy(self, look: Callable[[], float] = lambda: 0.0) -> tuple[float, float]:
        """Deploy to all of them; when it was assigned (epoch seconds), and the result of `look` just before."""
        self.number += 1
        given = {"version_id": self.version, "config": config(f"email:mask={self.number % 9 + 1}:4:*")}
        bundle = self.app.json("POST", f"{self.where}/bundles", given, self.token, 201)
        wanted = {"bundle_id": bundle["id"], "targets": {"all": True}, "reason": "measured"}
        made = self.app.json("POST", f"{self.where}/deployments", wanted, self.token, 201)
        looked = look()
        self.drain()
        began = time.time()
        self.made = made["id"]
        return began, looked


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _processor_seconds(pid: int) -> float:
    """What the process has computed so far, in the kernel too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _first_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def main() -> None:
    """Measure and print; as a child, be the client."""
    if __name__ == "__main__":
        port, requests = json.load(sys.stdin)
        _allow_files()
        asyncio.run(_call_all(port, [(path, token) for path, token in requests]))
        return
    _allow_files()
    with control_plane() as url, log_in_a_file():
        _measure(url)


def _allow_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _peer(url: str, fleet: Fleet, logs: Path) -> tuple[list[float], float]:
    """Seconds until each answer of the peer, after one notification for all, and its processor time."""
    port = free_port()
    process = _command("-m", "bench.waits_peer", str(port), log=logs / "peer.log")
    try:
        until(lambda: _listens(port), 30)
        client = Client(port, [(f"/{pk}", "-") for pk in fleet.keys])
        client.sent()
        time.sleep(1)
        computed = _processor_seconds(process.pid)
        with psycopg.connect(url, autocommit=True) as raw:
            channels = [f"agent:{pk}" for pk in fleet.keys]
            raw.execute("SELECT pg_notify('byteor', c) FROM unnest(%s::text[]) AS c", (channels,))
        began = time.time()
        return _seconds(client.answers(), began), _processor_seconds(process.pid) - computed
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _seconds(answers: list[tuple[int, float]], began: float) -> list[float]:
    if {status for status, _ in answers} != {200}:
        raise SystemExit(f"answers: {sorted({status for status, _ in answers})}")
    return sorted(at - began for _, at in answers)


def _measure(url: str) -> None:
    port = free_port()
    os.environ["BYTEOR_CLOUD_API_BIND_ADDR"] = f"127.0.0.1:{port}"
    logs = Path(os.environ["BYTEOR_CLOUD_DATA_DIR"])
    fleet = Fleet(AGENTS)
    with _running("manage.py", "run_web", log=logs / "web.log", ready=f"http://127.0.0.1:{port}/healthz") as process:
        first = Client(port, [(path.replace("wait=30", "wait=0"), key) for path, key in fleet.polls()])
        first.sent()
        first.answers()
        worker = _first_child(process.pid)
        before = _resident(worker)
        client = Client(port, fleet.polls())
        client.sent()
        time.sleep(SETTLE_SECONDS)
        held = _resident(worker)
        began, computed = fleet.deploy(lambda: _processor_seconds(worker))
        ours = _seconds(client.answers(), began)
        computed = _processor_seconds(worker) - computed
        theirs, theirs_computed = _peer(url, fleet, logs)
        more = (held - before) / 2**20
        print(f"{AGENTS} waits: {held / 2**20:.0f} MiB resident, {more:.0f} MiB more   wanted < 250 MiB")
        report("one deployment to all: last answer / the peer's", [(ours[-1], theirs[-1])], wanted="<= 3")
        report("the same, processor time of the web process", [(computed, theirs_computed)])
        middle = AGENTS // 2
        print(f"  first and median answer: ours {ours[0]:.2f} s, {ours[middle]:.2f} s", end="")
        print(f"; the peer's {theirs[0]:.2f} s, {theirs[middle]:.2f} s", flush=True)
        last = Client(port, fleet.polls())
        last.sent()
        time.sleep(SETTLE_SECONDS)
        began = time.time()
        process.send_signal(signal.SIGTERM)
        answers = last.answers()
        process.wait(15)
        slowest = max(at for _, at in answers) - began
        print(f"SIGTERM: all {len(answers)} answered within {slowest:.2f} s", end="")
        print(f", gone in {time.time() - began:.2f} s   wanted <= 10 s", flush=True)


if __name__ == "__main__":
    main()
