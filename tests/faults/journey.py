"""One environment and what people do in it, as people do it: an answer that is cut off is looked after, then asked for again."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.runtime.faults import VARIABLE
from tests.faults.stack import Points, Service, Stack
from tests.flows.world import ROOT, SPEC, Api, until
from tests.lines import log_text

if TYPE_CHECKING:
    from tests.faults.cases import Case

CUT_OFF = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
PATIENCE = 60.0


class Host:
    """A machine with an agent on it, started again whenever it dies."""

    def __init__(self, stack: Stack, name: str, folder: Path, environment_url: str, token: str) -> None:
        self.stack, self.name, self.folder = stack, name, folder
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "in.jsonl").touch()
        self.points = Points(folder / "faults")
        self.fed = 0
        self._environment = {
            **stack.agent_environment,
            "BYTEOR_ENROLLMENT_TOKEN": token,
            VARIABLE: str(self.points.folder),
        }
        self._command = ["-m", "apps.runtime.agent", "run", "--environment-url", environment_url, "--name", name]
        self._command += ["--state-dir", str(folder / "state"), "--data-dir", str(folder / "data")]
        self.service: Service | None = None

    def start(self) -> None:
        name = f"{self.folder.parent.name}-{self.name}"
        self.service = self.stack.serve(name, self._command, self._environment)

    def stop(self) -> None:
        if self.service is not None:
            self.stack.dismiss(self.service)
            self.service = None

    def feed(self, records: int = 20) -> None:
        """Give the pipeline that many more records."""
        with (self.folder / "data" / "in.jsonl").open("a") as out:
            for _ in range(records):
                out.write(json.dumps({"id": self.fed, "email": "ann@example.com", "filler": "x" * 500}) + "\n")
                self.fed += 1

    def block(self) -> None:
        """Put a folder where the pipeline writes: it can't go on, and reports that."""
        out = self.folder / "data" / "out.jsonl"
        if out.exists():
            out.rename(out.with_name("former.jsonl"))
        out.mkdir()
        self.feed(1)

    def rotate_key(self) -> bool:
        """`rotate-key`; whether it worked."""
        command = [sys.executable, "-m", "apps.runtime.agent", "rotate-key", "--state-dir", str(self.folder / "state")]
        return subprocess.run(command, cwd=ROOT, env=self._environment, check=False).returncode == 0

    def trusts_the_newest_keys(self) -> bool:
        newest = self.stack.look_into("key_set_version", organization_id=self.stack.org_id)
        return bool(self.kept("keys.json")["version"] == newest)

    def _out(self) -> str:
        path = self.folder / "data" / "out.jsonl"
        return log_text(path) if path.is_file() else ""

    def emitted(self) -> list[int]:
        """The ids of the records that came out, in order. AssertionError when the last one stays torn."""
        until(lambda: self._out()[-1:] in ("", "\n"), PATIENCE)
        return self._whole()

    def _whole(self) -> list[int]:
        return [json.loads(line)["id"] for line in self._out().split("\n")[:-1]]

    def came_out(self) -> bool:
        """Has everything that was fed come out?"""
        return set(self._whole()) == set(range(self.fed))

    def kept(self, name: str) -> Any:
        """What the agent keeps in a file of its state; None while there is none, also when it goes meanwhile."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.folder / "state" / name).read_bytes())
        return None

    def snapshot(self, rank: Callable[[str | None], int | None]) -> dict[str, Any]:
        """What the agent keeps on disk, deployments by their number."""
        active, memory = self.kept("active.json"), self.kept("memory.json") or {}
        bundles = sorted(p.name for p in (self.folder / "state" / "bundles").glob("*"))
        return {
            "active": rank(active["deployment_id"]) if active else None,
            "runs": f"{active['bundle_sha256']}.tar" in bundles if active else None,
            "bundles": len(bundles),
            "followed": memory.get("content_digest") is not None,
            "waiting": len(self.kept("outbox.json") or []),
            "enrolling": self.kept("enrolling.json") is not None,
            "out": sorted(set(self.emitted())),
        }


class Journey:
    """A project with one environment, and alice who asks and bob who decides."""

    def __init__(self, stack: Stack, name: str, posture: str = "staging") -> None:
        self.stack, self.name = stack, name
        until(stack.ready, PATIENCE)
        base = f"{stack.url}/api/v1"
        # each token has a rate window of its own: all journeys of a stack are more than one allows
        fresh = [Api(base, stack.tokens[who]).post("/me/tokens", {"name": name})["token"] for who in ("alice", "bob")]
        self.alice, self.bob = (Api(base, token) for token in fresh)
        org = f"/orgs/{stack.org_id}"
        self.project = self.alice.post(f"{org}/projects", {"name": name})["id"]
        self.project_path = f"{org}/projects/{self.project}"
        environments = f"{self.project_path}/environments"
        self.environment = self.alice.post(environments, {"name": "here", "posture": posture})["id"]
        self.env = f"{environments}/{self.environment}"
        self.hosts: list[Host] = []
        self.deployments: list[str] = []
        self.deleted = False
        self.armed: Case | None = None

    def arm(self) -> None:
        """Arm the point of the case, if it is one of the control plane."""
        if self.armed is not None and not self.armed.on_host:
            self.stack.points.arm(self.armed.point, self.armed.skip)

    # --- how people and machines are stubborn ---

    def surely(self, act: Callable[[], Any], there: Callable[[], Any]) -> Any:
        """`act()`. When its answer is cut off: what it was to make, if it is `there()`, else act again."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return act()
            except CUT_OFF:
                assert time.monotonic() < deadline, "the control plane did not come back"
                until(self.stack.ready, PATIENCE)
            found = self.get(there)
            if found:
                return found

    def get(self, read: Callable[[], Any]) -> Any:
        """`read()`, again as long as the connection is cut off."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return read()
            except CUT_OFF:
                assert time.monotonic() < deadline, "the control plane did not come back"
                time.sleep(0.1)

    def until(self, read: Callable[[], Any]) -> Any:
        return until(lambda: self.get(read), PATIENCE)

    def _listed(self, what: str, include: str = "", **fields: Any) -> Callable[[], Any]:
        def find() -> Any:
            rows = self.alice.get(f"{self.env}/{what}{include}")["results"]
            return next((r for r in rows if all(r[k] == v for k, v in fields.items())), None)

        return find

    def _again(self, method: str, path: str, body: Any = None, fine: tuple[int, ...] = (200, 201)) -> Any:
        """A call that may simply be repeated."""

        def act() -> Any:
            status, answer = self.alice.call(method, path, body)
            assert status in fine, (status, answer)
            return answer

        return self.get(act)

    # --- hosts ---

    def host(self, name: str = "berlin", *, start: bool = True) -> Host:
        """A machine with a fresh enrollment token; its agent runs when this returns, unless `start` is false."""
        token = self.surely(
            lambda: self.alice.post(f"{self.env}/enrollment-tokens", {"name": name, "max_uses": 1}), lambda: None
        )["token"]
        url = f"{self.stack.url}/api/v1{self.env}"
        host = Host(self.stack, name, self.stack.home / self.name / name, url, token)
        if self.armed is not None and self.armed.on_host and not self.hosts:
            host.points.arm(self.armed.point, self.armed.skip)
        self.hosts.append(host)
        if start:
            self.start(host)
        return host

    def start(self, host: Host) -> None:
        host.start()
        self.until(self._listed("agents", name=host.name, status="online"))

    # --- the road ---

    def draft(self, name: str = "orders") -> str:
        """A new draft; its id."""
        act = lambda: self.alice.post(f"{self.env}/drafts", {"name": name, "spec": SPEC})  # noqa: E731
        return str(self.surely(act, self._listed("drafts", name=name))["id"])

    def promote(self, draft_id: str) -> str:
        """Wait for its ingestion, and freeze it; the version's id."""
        self.until(lambda: self.alice.get(f"{self.env}/drafts/{draft_id}")["status"] == "valid")
        return str(self._again("POST", f"{self.env}/drafts/{draft_id}/promote", {})["id"])

    def author(self) -> str:
        """Draft, ingestion, version; its id."""
        return self.promote(self.draft())

    def bundle(self, version_id: str, *rules: str, out: str = "out.jsonl") -> str:
        """A bundle that redacts by `rules`; its id."""
        config = {
            "adapters": {"ingress": {"type": "file", "path": "in.jsonl"}, "egress": {"type": "file", "path": out}},
            "stages": {"redact": {"rules": list(rules)}},
        }
        act = lambda: self.alice.post(f"{self.env}/bundles", {"version_id": version_id, "config": config})  # noqa: E731
        return str(self.surely(act, self._listed("bundles", "?include=config", config=config))["id"])

    def request(self, bundle_id: str, **more: Any) -> dict[str, Any]:
        """Ask for it to run everywhere."""
        body = {"bundle_id": bundle_id, "targets": {"all": True}, "reason": "because", **more}
        act = lambda: self.alice.post(f"{self.env}/deployments", body)  # noqa: E731
        asked: dict[str, Any] = self.surely(act, self._listed("deployments", bundle_id=bundle_id))
        self.deployments.append(asked["id"])
        return asked

    def approval(self, deployment: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.get(lambda: self.bob.get(f"{self.env}/approvals/{deployment['approval_id']}"))
        return found

    def decide(self, deployment: dict[str, Any], word: str = "approve", outcome: str = "approved") -> None:
        """Bob decides what he is shown."""
        shown = self.approval(deployment)
        path = f"{self.env}/approvals/{shown['id']}/{word}"
        body = {"shown_digest": shown["shown_digest"], "comment": "seen"}
        done = self.surely(
            lambda: self.bob.post(path, body, expect=200),
            lambda: (now := self.approval(deployment))["status"] == outcome and now,
        )
        assert done["status"] == outcome

    def act(self, deployment: dict[str, Any], word: str, *outcomes: str) -> None:
        """`rollback` or `cancel`."""
        path = f"{self.env}/deployments/{deployment['id']}"
        self.surely(
            lambda: self.alice.post(f"{path}/{word}", {"reason": "worse"}, expect=200),
            lambda: self.alice.get(path)["status"] in outcomes,
        )

    def withdraw(self, deployment: dict[str, Any]) -> None:
        """Alice takes her request back."""
        path = f"{self.env}/approvals/{deployment['approval_id']}"
        self.surely(
            lambda: self.alice.post(f"{path}/revoke", {"comment": "not now"}, expect=200),
            lambda: self.approval(deployment)["status"] == "revoked",
        )

    def remove(self, host: Host) -> None:
        """Delete the host's agent; one that is deleted already is as good."""
        agent_id = host.kept("agent.json")["agent_id"]
        self._again("DELETE", f"{self.env}/agents/{agent_id}", fine=(204, 404))
        self.hosts.remove(host)

    def rotate_agent_key(self, host: Host) -> None:
        """`rotate-key` on the host, until it works."""
        until(host.rotate_key, PATIENCE)

    def rotate_signing_key(self) -> str:
        """A new signing key; the id of the one that it replaces."""
        path = f"/orgs/{self.stack.org_id}/signing-keys"
        active = lambda: self.alice.get(f"{path}?status=active")["results"][0]["kid"]  # noqa: E731
        former = str(self.get(active))
        self.surely(lambda: self.alice.post(path, {"reason": "yearly"}), lambda: active() != former)
        return former

    def revoke_signing_key(self, kid: str) -> None:
        self._again("POST", f"/orgs/{self.stack.org_id}/signing-keys/{kid}/revoke", {"reason": "stolen"}, fine=(200,))

    def delete(self) -> None:
        """The project and all below it, for good: what is left of it is what there is to see at the end."""
        self._again("DELETE", f"{self.project_path}?force=true", fine=(202, 204, 404))
        deadline = time.monotonic() + PATIENCE
        while self._left()["environment"]:
            # the process that ran it may be dead by now: its next turn would come by itself within a minute
            self.stack.look_into("run_chore", name="tree_purge")
            assert time.monotonic() < deadline, self._left()
            time.sleep(0.5)
        self.deleted = True

    def _left(self) -> dict[str, Any]:
        left: dict[str, Any] = self.stack.look_into(
            "what_is_left", environment_id=self.environment, project_id=self.project
        )
        return left

    def pass_time(self, model: str, pk: str, field: str, chore: str) -> None:
        """Let a moment pass that is hours away, and the chore that looks for it run."""
        self.stack.look_into("move_back", model=model, pk=pk, field=field, seconds=1)
        self.stack.look_into("run_chore", name=chore)

    def activated(self, deployment: dict[str, Any], number: int) -> None:
        path = f"{self.env}/deployments/{deployment['id']}"
        self.until(lambda: self.alice.get(path)["targets"]["activated"] == number)

    def reach(self, deployment: dict[str, Any], status: str) -> None:
        self.until(lambda: self.alice.get(f"{self.env}/deployments/{deployment['id']}")["status"] == status)

    def flow(self) -> None:
        """Feed every host, and wait until all of it has come out."""
        for host in self.hosts:
            host.feed()
        until(lambda: all(host.came_out() for host in self.hosts), PATIENCE)

    def deploy(self, version_id: str, *rules: str) -> dict[str, Any]:
        """From bundle to active, and records through it."""
        asked = self.request(self.bundle(version_id, *rules))
        self.decide(asked)
        self.reach(asked, "active")
        self.flow()
        return asked

    # --- the end ---

    def settle(self) -> None:
        """Wait until all work has ended."""
        if self.deleted:
            return
        until(lambda: not self.stack.look_into("busy", environment_id=self.environment), PATIENCE)
        # an agent that was just started has not yet asked what to do, and reports only after it has done it
        until(self._directives_are_followed, PATIENCE)
        until(lambda: all(not host.kept("outbox.json") for host in self.hosts), PATIENCE)
        self.until(
            lambda: all(
                row["status"] != "online" or row["running"] == self._active(row["name"])
                for row in self.alice.get(f"{self.env}/agents")["results"]
            )
        )

    def _directives_are_followed(self) -> bool:
        """True if each host that is on has carried out what it should do now."""
        numbers = self.stack.look_into("directives", environment_id=self.environment)
        followed = {host.name: host.kept("memory.json") for host in self.hosts if host.service is not None}
        return all(memory and memory["directive_seq"] == numbers[name] for name, memory in followed.items())

    def _active(self, name: str) -> Any:
        return next(host.kept("active.json") for host in self.hosts if host.name == name)

    def snapshot(self) -> dict[str, Any]:
        """The state of all that this journey touched: the control plane's, and each host's."""
        if self.deleted:
            return self._left()
        numbers = {pk: n for n, pk in enumerate(self.deployments)}
        rank = lambda pk: None if pk is None else numbers.get(pk, -1)  # noqa: E731
        stored = json.dumps(self.stack.look_into("snapshot", environment_id=self.environment))
        return {
            # what an agent reported may name a folder of its own
            **json.loads(stored.replace(str(self.stack.home / self.name), "…")),
            "hosts": {host.name: host.snapshot(rank) for host in self.hosts},
        }

    def end(self) -> None:
        """Nothing of it goes on running, or waiting: a poll that an agent left behind holds a thread of the server."""
        for host in self.hosts:
            host.stop()
        self._again("DELETE", f"{self.project_path}?force=true", fine=(202, 204, 404))
