"""A signing key leaks: rotated, revoked, deployed again, while a real agent runs on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.flows.test_road import deploy, emitted, feed, reach
from tests.flows.world import SPEC, Api, running, until
from tests.lines import log_text

pytestmark = [pytest.mark.alone, pytest.mark.postgres, pytest.mark.timeout(480)]


def test_a_leaked_key_is_taken_out_of_use_while_the_pipeline_runs(tmp_path: Path) -> None:
    with running(tmp_path) as world:
        made = world.manage("bootstrap", "--org", "Acme", "--admin", "alice@example.com")
        alice, org = Api(world.api, made["token"]), f"/orgs/{made['org_id']}"
        project = alice.post(f"{org}/projects", {"name": "Shop"})
        environment = alice.post(f"{org}/projects/{project['id']}/environments", {"name": "Dev", "posture": "dev"})
        env = f"{org}/projects/{project['id']}/environments/{environment['id']}"
        token = alice.post(f"{env}/enrollment-tokens", {})["token"]
        host = world.agent("berlin", f"{world.api}{env}", token)
        until(lambda: alice.get(f"{env}/agents")["results"])
        draft = alice.post(f"{env}/drafts", {"name": "orders", "spec": SPEC})
        version = alice.post(f"{env}/drafts/{draft['id']}/promote", {})["id"]
        first = deploy(alice, env, version, "email:drop")
        reach(alice, env, first, "active")
        number = 0

        def comes_out(*names: str) -> None:
            nonlocal number
            number += 1
            feed({"berlin": host}, number)
            assert set(emitted(host, number)) == {"id", *names}

        def followed(version: int) -> None:
            until(lambda: f"key set version {version} accepted" in log_text(host / "log"))

        comes_out("card")
        (leaked,) = alice.get(f"{org}/signing-keys")["results"]
        fresh = alice.post(f"{org}/signing-keys", {"reason": "it leaked"})
        followed(2)
        revoked = alice.post(f"{org}/signing-keys/{leaked['kid']}/revoke", {"reason": "it leaked"}, expect=200)
        assert revoked["status"] == "revoked"
        followed(3)
        comes_out("card")
        assert [row["id"] for row in alice.get(f"{env}/deployments?needs_redeployment=true")["results"]] == [
            first["id"]
        ]

        agent = world.children[0]
        agent.kill()
        agent.wait()
        with (host / "log").open("ab") as log:
            world.children[0] = subprocess.Popen(agent.args, stdout=log, stderr=log)
        comes_out("card")

        second = deploy(alice, env, version, "card:drop")
        assert reach(alice, env, second, "active")["signing_kid"] == fresh["kid"]
        comes_out("email")
        assert alice.get(f"{env}/deployments?needs_redeployment=true")["results"] == []
        status, answer = alice.call("POST", f"{env}/deployments/{second['id']}/rollback", {})
        assert (status, answer["code"]) == (409, "signing_key_revoked")
        until(lambda: alice.get(f"{env}/agents")["results"][0]["key_set_version"] == 3)
