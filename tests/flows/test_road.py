"""From nothing to an approved, signed, active deployment on real agents; then forward, back, and away."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.world import ROOT, SPEC, Api, World, config, free_port, running, until
from tests.lines import json_lines

pytestmark = [pytest.mark.alone, pytest.mark.timeout(480)]


def deploy(api: Api, env: str, version_id: str, *rules: str) -> dict:
    bundle = api.post(f"{env}/bundles", {"version_id": version_id, "config": config(*rules)})
    return api.post(f"{env}/deployments", {"bundle_id": bundle["id"], "targets": {"all": True}, "reason": "because"})


def approve(api: Api, env: str, deployment: dict) -> float:
    approval = api.get(f"{env}/approvals/{deployment['approval_id']}")
    started = time.monotonic()
    done = api.post(f"{env}/approvals/{approval['id']}/approve", {"shown_digest": approval["shown_digest"]}, expect=200)
    assert done["status"] == "approved"
    return started


def reach(api: Api, env: str, deployment: dict, status: str) -> dict:
    def there() -> dict | None:
        now = api.get(f"{env}/deployments/{deployment['id']}")
        return now if now["status"] == status else None

    found: dict = until(there)
    return found


def feed(hosts: dict[str, Path], number: int) -> None:
    for home in hosts.values():
        with (home / "data" / "in.jsonl").open("a") as out:
            out.write(json.dumps({"id": number, "email": "ann@example.com", "card": "4111111111111111"}) + "\n")


def emitted(home: Path, number: int) -> dict:
    def line() -> dict | None:
        path = home / "data" / "out.jsonl"
        rows = json_lines(path)
        return next((row for row in rows if row["id"] == number), None)

    found: dict = until(line)
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(Path(tmp_path_factory.mktemp("road")), migrated=False) as found:
        yield found


@pytest.mark.postgres
def test_the_main_road(world: World):
    first = world.manage("bootstrap", "--org", "Acme", "--admin", "alice@example.com")
    alice = Api(world.api, first["token"])
    bob, _ = world.person("bob@example.com", first["org_id"], "operator")
    vera, _ = world.person("vera@example.com", first["org_id"], "viewer")
    elsewhere = world.manage("bootstrap", "--org", "Elsewhere", "--admin", "charlie@example.com")
    charlie = Api(world.api, elsewhere["token"])
    org = f"/orgs/{first['org_id']}"
    project, sibling = (alice.post(f"{org}/projects", {"name": name}) for name in ("Shop", "Sibling"))
    environment = alice.post(f"{org}/projects/{project['id']}/environments", {"name": "Staging", "posture": "staging"})
    other_environment = alice.post(f"{org}/projects/{sibling['id']}/environments", {"name": "Dev", "posture": "dev"})
    env = f"{org}/projects/{project['id']}/environments/{environment['id']}"
    token = alice.post(f"{env}/enrollment-tokens", {"max_uses": 2})["token"]
    hosts = {name: world.agent(name, f"{world.api}{env}", token) for name in ("berlin", "lyon")}

    def agents() -> dict[str, dict]:
        return {row["name"]: row for row in alice.get(f"{env}/agents")["results"]}

    until(lambda: sum(row["status"] == "online" for row in agents().values()) == 2)
    assert all(row["running"] is None for row in agents().values())

    draft = alice.post(f"{env}/drafts", {"name": "orders", "spec": SPEC})
    until(lambda: alice.get(f"{env}/drafts/{draft['id']}")["status"] == "valid")
    version = alice.post(f"{env}/drafts/{draft['id']}/promote", {})

    one = deploy(alice, env, version["id"], "email:mask=1:4:*")
    assert one["status"] == "pending_approval"
    approval = alice.get(f"{env}/approvals/{one['approval_id']}")
    path = f"{env}/approvals/{approval['id']}/approve"
    seen = {"shown_digest": approval["shown_digest"]}
    for who, digest, status, code in (
        (alice, seen, 403, "self_approval"),
        (vera, seen, 403, "permission_denied"),
        (charlie, seen, 404, "not_found"),
        (bob, {"shown_digest": "sha256:" + "0" * 64}, 409, "stale_decision"),
    ):
        got, answer = who.call("POST", path, digest)
        assert (got, answer["code"]) == (status, code)

    started = approve(bob, env, one)
    now = reach(alice, env, one, "active")
    took = time.monotonic() - started
    assert took < 10, f"approve to active took {took:.1f} s"
    assert now["targets"]["activated"] == 2
    digests = {row["running"]["bundle_sha256"] for row in agents().values()}
    assert digests == {now["bundle_sha256"]}
    feed(hosts, 1)
    for home in hosts.values():
        assert emitted(home, 1) == {"id": 1, "email": "a**********.com", "card": "4111111111111111"}

    two = deploy(alice, env, version["id"], "email:hash", "card:drop")
    approve(bob, env, two)
    later = reach(alice, env, two, "active")
    assert alice.get(f"{env}/deployments/{one['id']}")["superseded_by"] == two["id"]
    assert {row["running"]["bundle_sha256"] for row in agents().values()} == {later["bundle_sha256"]}
    feed(hosts, 2)
    for home in hosts.values():
        row = emitted(home, 2)
        assert "card" not in row
        assert row["email"] == hashlib.sha256(b'"ann@example.com"').hexdigest()

    alice.post(f"{env}/deployments/{two['id']}/rollback", {"reason": "worse"}, expect=200)
    reach(alice, env, two, "rolled_back")
    assert {row["running"]["bundle_sha256"] for row in agents().values()} == {now["bundle_sha256"]}
    back = alice.get(f"{env}/deployments/{one['id']}")
    assert (back["status"], back["superseded_by"]) == ("active", None)
    feed(hosts, 3)
    for home in hosts.values():
        assert emitted(home, 3)["email"] == "a**********.com"

    # away with the project: no row, no file, no working credential; agents keep running what they run
    key = json.loads((hosts["berlin"] / "state" / "agent.json").read_text())["api_key"]
    agent_id = agents()["berlin"]["id"]
    blobs = Path(world.environment["BYTEOR_CLOUD_DATA_DIR"]) / "blobs"
    assert list((blobs / environment["id"]).rglob("*"))
    status, _ = alice.call("DELETE", f"{org}/projects/{project['id']}?force=true")
    assert status in (202, 204)
    until(lambda: not (blobs / environment["id"]).exists())
    assert alice.call("GET", env)[0] == 404
    assert Api(world.api, key).call("GET", f"/agents/{agent_id}/deployment?wait=0&after=0")[0] == 401
    assert Api(world.api, token).call("POST", f"{env}/agents", {})[0] in (401, 404)
    assert alice.get(f"{org}/projects/{sibling['id']}/environments/{other_environment['id']}")["name"] == "Dev"
    feed(hosts, 4)
    for home in hosts.values():
        assert emitted(home, 4)["email"] == "a**********.com"


def test_health_readiness_metrics_and_install(world: World) -> None:
    with urllib.request.urlopen(f"{world.url}/healthz", timeout=30) as answer:
        assert json.load(answer) == {"status": "ok"}
    with urllib.request.urlopen(f"{world.url}/readyz", timeout=30) as answer:
        checks = json.load(answer)["checks"]
    assert {"database", "migrations", "cache", "storage", "worker"} <= set(checks)
    with urllib.request.urlopen(f"{world.url}/metrics", timeout=30) as answer:
        assert b"byteor_agents" in answer.read()
    with urllib.request.urlopen(f"{world.url}/install/byteor-agent.pyz", timeout=30) as answer:
        digest = hashlib.sha256(answer.read()).hexdigest()
    request = urllib.request.Request(f"{world.url}/install.sh", headers={"Host": "localhost"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        script = answer.read().decode()
    assert digest in script
    assert world.url in script
    assert subprocess.run(["sh", "-n"], input=script.encode(), check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROFILE", "moon"),
        ("API_BIND_ADDR", "nonsense"),
        ("DATABASE_URL", "mysql://x"),
        ("STORAGE_URL", "ftp://x"),
        ("UI_PUBLIC_BASE_URL", "http://host/path"),
        ("KEY_ENCRYPTION_KEYS", "short:abc"),
        ("PROFILE", "production"),
        ("JOB_LEASE_SECONDS", "soon"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_2(tmp_path: Path, name: str, value: str):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BYTEOR_CLOUD_")}
    environment |= {"BYTEOR_CLOUD_DATA_DIR": str(tmp_path), f"BYTEOR_CLOUD_{name}": value}
    done = subprocess.run(
        [sys.executable, "manage.py", "check"], cwd=ROOT, env=environment, capture_output=True, check=False, text=True
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "BYTEOR_CLOUD_" in done.stderr


def test_a_taken_port_is_one_line_and_exit_2(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BYTEOR_CLOUD_")}
        environment["BYTEOR_CLOUD_DATA_DIR"] = str(tmp_path)
        environment["BYTEOR_CLOUD_API_BIND_ADDR"] = f"127.0.0.1:{taken.getsockname()[1]}"
        environment["BYTEOR_CLOUD_WORKER_BIND_ADDR"] = f"127.0.0.1:{free_port()}"
        done = subprocess.run(
            [sys.executable, "manage.py", "up"], cwd=ROOT, env=environment, capture_output=True, check=False, text=True
        )
    assert done.returncode == 2
    assert "can't listen" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_killing_up_leaves_no_child_behind(tmp_path: Path):
    def marked() -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if str(tmp_path).encode() in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    with running(tmp_path) as world:
        until(lambda: len(marked()) > 4)
        os.kill(world.pid, signal.SIGKILL)
        until(lambda: not marked(), 30)
        assert world.children == []
