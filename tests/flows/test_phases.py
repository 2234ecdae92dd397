"""A three-phase rollout to thirty agents, the twelfth of which fails: web and worker are real, the agents are played over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.flows.world import ROOT, SPEC, Api, config, running, until

pytestmark = [pytest.mark.alone, pytest.mark.postgres, pytest.mark.timeout(480)]

AGENTS, TWELFTH = 30, 11
ENROLL = """
import json, os
from apps.access import tokens
from apps.api.authentication.agents import enrollment_principal
from apps.agents.services import enroll, usable_token
token = usable_token(tokens.parse(os.environ["TOKEN"]).sha256, idempotency_key=None)
for number in range(int(os.environ["AGENTS"])):
    made = enroll(actor=enrollment_principal(token), token=token, name=f"host-{number + 1:02}")
    print(json.dumps({"agent_id": str(made.agent.pk), "api_key": made.api_key.reveal()}))
"""
"""Past the enrollment limit of twenty a minute."""
STRATEGY = {
    "type": "phased",
    "phases": [
        {"percent": 10, "bake_seconds": 2},
        {"percent": 50, "bake_seconds": 1},
        {"percent": 100, "bake_seconds": 1},
    ],
}


class Played:
    """One agent, by the calls that a real one makes with its own key."""

    def __init__(self, base: str, enrolled: dict[str, Any]) -> None:
        self.api = Api(base, enrolled["api_key"])
        self.id: str = enrolled["agent_id"]
        self.running: dict[str, Any] | None = None
        self.seq = self.done = 0

    def heartbeat(self) -> dict[str, Any]:
        body = {"status": "running", "version": "1", "running": self.running, "key_set_version": 1}
        answer = self.api.post(f"/agents/{self.id}/heartbeat", body, expect=200)["desired"]["directive"]
        self.seq = answer["directive_seq"]
        return dict(answer)

    def obey(self, fails: bool = False) -> None:
        """Carry out its directive, once."""
        wanted = self.heartbeat()
        if wanted["directive"] == "none" or self.seq == self.done:
            return
        self.done = self.seq
        fails = fails and wanted["directive"] == "activate"
        here = f"/agents/{self.id}/deployments"
        what = {"bundle_sha256": wanted["bundle_sha256"], "sequence": wanted["sequence"]}
        if wanted["directive"] == "activate":
            assert self.api.download(f"{here}/{wanted['deployment_id']}/bundle")
        done = "rolled_back" if wanted["directive"] == "rollback" else "activated"
        for status in ("fetched", "verified", "failed" if fails else done):
            body = {"status": status, **what, "reason": "bad_health: exit 3" if status == "failed" else ""}
            self.api.post(f"{here}/{wanted['for_deployment_id']}/status", body, expect=200)
        if not fails:
            self.running = {"deployment_id": wanted["deployment_id"], **what}

    @property
    def runs(self) -> str | None:
        return self.running["deployment_id"] if self.running else None


def test_the_twelfth_of_thirty_fails(tmp_path: Path) -> None:
    with running(tmp_path) as world:
        first = world.manage("bootstrap", "--org", "Acme", "--admin", "alice@example.com")
        alice = Api(world.api, first["token"])
        bob, _ = world.person("bob@example.com", first["org_id"], "operator")
        org = f"/orgs/{first['org_id']}"
        project = f"{org}/projects/{alice.post(f'{org}/projects', {'name': 'Shop'})['id']}"
        made = alice.post(f"{project}/environments", {"name": "Staging", "posture": "staging"})
        env = f"{project}/environments/{made['id']}"
        token = alice.post(f"{env}/enrollment-tokens", {"max_uses": AGENTS, "labels": {"ring": "edge"}})["token"]
        enrolled = subprocess.run(
            [sys.executable, "manage.py", "shell", "-c", ENROLL, "--no-imports"],
            cwd=ROOT,
            env={**world.environment, "TOKEN": token, "AGENTS": str(AGENTS)},
            capture_output=True,
            check=True,
        )
        agents = [Played(world.api, json.loads(line)) for line in enrolled.stdout.splitlines()]
        assert len(agents) == AGENTS
        draft = alice.post(f"{env}/drafts", {"name": "orders", "spec": SPEC})
        version = alice.post(f"{env}/drafts/{draft['id']}/promote", {})

        def show(deployment: str) -> dict[str, Any]:
            return dict(alice.get(f"{env}/deployments/{deployment}"))

        def begin(rule: str, **more: Any) -> str:
            bundle = alice.post(f"{env}/bundles", {"version_id": version["id"], "config": config(rule)})
            body = {"bundle_id": bundle["id"], "targets": {"labels": {"ring": "edge"}}, **more}
            asked = alice.post(f"{env}/deployments", body)
            approval = alice.get(f"{env}/approvals/{asked['approval_id']}")
            seen = {"shown_digest": approval["shown_digest"]}
            bob.post(f"{env}/approvals/{approval['id']}/approve", seen, expect=200)
            return str(asked["id"])

        def play(deployment: str, *ends: str, fails: Played | None = None) -> dict[str, Any]:
            """Let every agent carry out its directives until the deployment is at an end."""

            def turn() -> dict[str, Any] | None:
                for agent in agents:
                    agent.obey(fails=agent is fails)
                now = show(deployment)
                return now if now["status"] in ends else None

            return dict(until(turn, 90))

        base = begin("email:drop")
        play(base, "active")
        assert {agent.runs for agent in agents} == {base}
        before = {agent.id: agent.seq for agent in agents}
        twelfth, rest = agents[TWELFTH], agents[15:]

        # by itself: it stops in its phase and takes back what it changed
        by_itself = begin("email:hash", strategy={**STRATEGY, "auto_rollback": True})
        now = play(by_itself, "rolled_back", fails=twelfth)
        assert [phase["status"] for phase in now["phases"]] == ["passed", "stopped", "untouched"]
        assert [phase["targets"]["total"] for phase in now["phases"]] == [3, 12, 15]
        for agent in agents:
            agent.obey()
        assert {agent.runs for agent in agents} == {base}
        events = [(e["from"], e["to"]) for e in alice.get(f"{env}/deployments/{by_itself}/events")["results"]]
        assert events[:3] == [("rolling_back", "rolled_back"), ("failed", "rolling_back"), ("deploying", "failed")]

        # only on a directive: what has it keeps it until then
        by_hand = begin("card:drop", strategy=STRATEGY)
        play(by_hand, "failed", fails=twelfth)
        for agent in agents:
            agent.obey()
        # its phase may have begun in the middle of a turn: an agent without a directive before the twelfth failed stays
        assert {agent.runs for agent in agents[:3]} == {by_hand}
        assert {agent.runs for agent in agents[3:15]} <= {by_hand, base}
        assert {agent.runs for agent in [twelfth, *rest]} == {base}
        alice.post(f"{env}/deployments/{by_hand}/rollback", {}, expect=200)
        play(by_hand, "rolled_back")
        assert {agent.runs for agent in agents} == {base}

        # those of the last phase never had a directive for either
        for deployment in (by_itself, by_hand):
            rows = alice.get(f"{env}/deployments/{deployment}/targets?limit=200")["results"]
            shown = {row["agent_id"]: row for row in rows}
            for agent in rest:
                row = shown[agent.id]
                assert (row["status"], row["phase"], row["report"]) == ("pending", 2, {})
                assert row["phase_started_at"] is row["settled_at"] is row["updated_at"] is None
        for agent in rest:
            agent.heartbeat()
            assert agent.seq == before[agent.id], "its directive changed"
        assert show(base)["superseded_by"] is None
        assert alice.get(env)["current_deployment_id"] == base
