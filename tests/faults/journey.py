"""One environment and what people do in it, as people do it: an answer that is cut off is looked after, then asked for again."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.runtime.faults import VARIABLE
from tests.faults.stack import Points, Service, Stack
from tests.flows.world import SPEC, Api, until

if TYPE_CHECKING:
    from tests.faults.cases import Case

CUT_OFF = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
PATIENCE = 30.0


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

    def emitted(self) -> list[int]:
        """The ids of the records that came out, in order. AssertionError when a line is no whole record."""
        path = self.folder / "data" / "out.jsonl"
        lines = path.read_text().split("\n") if path.exists() else [""]
        assert lines[-1] == "" or len(lines) == 1, "the last record is torn"
        return [json.loads(line)["id"] for line in lines[:-1]]

    def came_out(self) -> bool:
        """Has everything that was fed come out?"""
        try:
            return set(self.emitted()) == set(range(self.fed))
        except (ValueError, AssertionError):
            return False

    def kept(self, name: str) -> Any:
        path = self.folder / "state" / name
        return json.loads(path.read_bytes()) if path.exists() else None

    def snapshot(self, rank: Callable[[str | None], int | None]) -> dict[str, Any]:
        """What the agent keeps on disk, deployments by their number."""
        active, memory = self.kept("active.json"), self.kept("memory.json") or {}
        bundles = sorted(p.name for p in (self.folder / "state" / "bundles").glob("*"))
        return {
            "active": rank(active["deployment_id"]) if active else None,
            "runs": f"{active['bundle_sha256']}.tar" in bundles if active else None,
            "bundles": len(bundles),
            "told": memory.get("content_digest") is not None,
            "waiting": len(self.kept("outbox.json") or []),
            "enrolling": self.kept("enrolling.json") is not None,
            "out": sorted(set(self.emitted())),
        }


class Journey:
    """A project with one environment, and alice who asks and bob who decides."""

    def __init__(self, stack: Stack, name: str, posture: str = "staging") -> None:
        self.stack, self.name = stack, name
        self.alice, self.bob = (Api(f"{stack.url}/api/v1", stack.tokens[who]) for who in ("alice", "bob"))
        until(stack.ready, PATIENCE)
        org = f"/orgs/{stack.org_id}"
        self.project = self.alice.post(f"{org}/projects", {"name": name})["id"]
        self.project_path = f"{org}/projects/{self.project}"
        environments = f"{self.project_path}/environments"
        self.environment = self.alice.post(environments, {"name": "here", "posture": posture})["id"]
        self.env = f"{environments}/{self.environment}"
        self.hosts: list[Host] = []
        self.deployments: list[str] = []
        self.armed: Case | None = None

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

    def _listed(self, what: str, **fields: Any) -> Callable[[], Any]:
        def find() -> Any:
            rows = self.alice.get(f"{self.env}/{what}")["results"]
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
        """A machine with a fresh enrollment token; its agent runs when this returns, unless it shall not `start`."""
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

    def author(self, name: str = "orders") -> str:
        """Draft, ingestion, version; its id."""
        draft = self.surely(
            lambda: self.alice.post(f"{self.env}/drafts", {"name": name, "spec": SPEC}),
            self._listed("drafts", name=name),
        )
        self.until(lambda: self.alice.get(f"{self.env}/drafts/{draft['id']}")["status"] == "valid")
        return str(self._again("POST", f"{self.env}/drafts/{draft['id']}/promote", {})["id"])

    def bundle(self, version_id: str, *rules: str, out: str = "out.jsonl") -> str:
        """A bundle that redacts by `rules`; its id."""
        config = {
            "adapters": {"ingress": {"type": "file", "path": "in.jsonl"}, "egress": {"type": "file", "path": out}},
            "stages": {"redact": {"rules": list(rules)}},
        }
        act = lambda: self.alice.post(f"{self.env}/bundles", {"version_id": version_id, "config": config})  # noqa: E731
        return str(self.surely(act, self._listed("bundles", config=config))["id"])

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
        """Wait until nobody has anything to do any more."""
        until(lambda: not self.stack.look("busy", environment_id=self.environment), PATIENCE)
        until(lambda: all(not host.kept("outbox.json") for host in self.hosts), PATIENCE)
        self.until(
            lambda: all(
                row["status"] != "online" or row["running"] == self._says(row["name"])
                for row in self.alice.get(f"{self.env}/agents")["results"]
            )
        )

    def _says(self, name: str) -> Any:
        return next(host.kept("active.json") for host in self.hosts if host.name == name)

    def snapshot(self) -> dict[str, Any]:
        """The state of all that this journey touched: the control plane's, and each host's."""
        numbers = {pk: n for n, pk in enumerate(self.deployments)}
        rank = lambda pk: None if pk is None else numbers.get(pk, -1)  # noqa: E731
        return {
            **self.stack.look("snapshot", environment_id=self.environment),
            "hosts": {host.name: host.snapshot(rank) for host in self.hosts},
        }

    def end(self) -> None:
        """Nothing of it goes on running."""
        for host in self.hosts:
            host.stop()
