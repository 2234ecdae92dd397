"""The object store fails in every way: all other requests are served as before, and what was approved goes through afterwards.

`BYTEOR_STORAGE_FAULTS=slow,hang,refuse,403,503` chooses the faults; the suite has two of them.
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.flows.world import SPEC, Api, World, config, until
from tests.lines import whole_lines
from tests.recovery.plant import Plant, plant
from tests.storage.proxy import BUCKET, CREDENTIALS, FaultProxy
from tests.web import Server

pytestmark = [pytest.mark.alone, pytest.mark.timeout(480)]

FAULTS = os.environ.get("BYTEOR_STORAGE_FAULTS", "hang,403").split(",")
SECONDS = float(os.environ.get("BYTEOR_STORAGE_SECONDS", "5"))


@dataclass
class Stored:
    """A control plane on the proxied store, with an agent, and another tenant."""

    plant: Plant
    world: World
    path: str
    version: str
    other: Api
    idle: Server

    @property
    def api(self) -> Api:
        return self.plant.api

    def deploy(self, rule: str) -> str:
        """Ask for a deployment to all agents; dev needs no second person, the policy approves."""
        bundle = self.api.post(f"{self.path}/bundles", {"version_id": self.version, "config": config(rule)})["id"]
        body = {"bundle_id": bundle, "targets": {"all": True}, "reason": "r"}
        return str(self.api.post(f"{self.path}/deployments", body)["id"])

    def status(self, made: str) -> str:
        return str(self.api.get(f"{self.path}/deployments/{made}")["status"])

    def worst(self, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
        """The longest time of each call, and of the same of a web server whose store is well, made at the same time: a busy machine
        slows both."""
        idle, owner = self.idle, self.idle.owner
        with ThreadPoolExecutor(1) as pool:
            undisturbed = pool.submit(worst, calls(idle.url, owner, idle.env, owner), seconds)
            return worst(calls(self.plant.url, self.api, self.path, self.other), seconds), undisturbed.result()


def calls(url: str, api: Api, path: str, other: Api) -> dict[str, Callable[[], Any]]:
    """What must not notice."""

    def healthz() -> None:
        with urllib.request.urlopen(f"{url}/healthz", timeout=40) as answer:
            assert answer.status == 200

    return {
        "/healthz": healthz,
        "/me": lambda: api.get("/me"),
        "drafts": lambda: api.post(f"{path}/drafts", {"name": "d", "spec": SPEC}),
        "another tenant": lambda: other.get("/me"),
    }


def worst(made: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """The longest time of each call, made one after the other four times a second (600 calls a minute is a person's limit)."""
    found = dict.fromkeys(made, 0.0)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, call in made.items():
            began = time.monotonic()
            call()
            found[name] = max(found[name], time.monotonic() - began)
        time.sleep(0.25)
    return found


@pytest.fixture(scope="module")
def stored(proxy: FaultProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    home = Path(tmp_path_factory.mktemp("storage"))
    settings = {"BYTEOR_CLOUD_STORAGE_URL": f"s3://{BUCKET}/plant", "AWS_ENDPOINT_URL_S3": proxy.url, **CREDENTIALS}
    with plant(home, **settings) as here:
        api = here.api
        project = f"/orgs/{here.org_id}/projects"
        project += f"/{api.post(project, {'name': 'P'})['id']}/environments"
        path = f"{project}/{api.post(project, {'name': 'dev', 'posture': 'dev'})['id']}"
        draft = api.post(f"{path}/drafts", {"name": "orders", "spec": SPEC})
        status, version = api.call("POST", f"{path}/drafts/{draft['id']}/promote", {})
        assert status == 201, version
        world = World(home, here.environment, here.url)
        token = api.post(f"{path}/enrollment-tokens", {})["token"]
        world.agent("host", f"{here.url}/api/v1{path}", token)
        other, _ = world.person("b@example.com", here.organizations["elsewhere"], "operator")
        idle = Server(home / "idle")
        made = Stored(here, world, path, version["id"], other, idle)
        try:
            until(lambda: api.get(f"{path}/agents")["results"], 30)
            first = made.deploy("first:drop")
            until(lambda: made.status(first) == "active", 60)
            yield made
        finally:
            idle.close()
            for child in world.children:
                child.terminate()
                child.wait(timeout=30)


def probe(url: str, stop: threading.Event) -> None:
    """Ask whether it is ready, again and again, and give up quickly, as a balancer does."""
    while not stop.is_set():
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=3) as answer:
                answer.read()
        except OSError:
            pass


@pytest.mark.parametrize("fault", FAULTS)
def test_no_other_request_is_affected_and_the_approved_deployment_goes_through(
    stored: Stored, proxy: FaultProxy, fault: str
) -> None:
    here = stored
    here.worst(1)
    stop = threading.Event()
    probes = [threading.Thread(target=probe, args=(here.plant.url, stop)) for _ in range(2)]
    with proxy.broken(fault):
        made = here.deploy(f"{'a' if fault.isdigit() else ''}{fault}:drop")
        for thread in probes:
            thread.start()
        try:
            under, idle = here.worst(SECONDS)
        finally:
            stop.set()
            for thread in probes:
                thread.join()
        if fault != "slow":
            assert here.status(made) in ("approved", "building")
            until(lambda: here.plant.wrong("storage"), 30)
            status, body = here.plant.ready()
            assert (status, body["status"]) == (200, "degraded")
    assert all(under[name] < max(1.0, 4 * idle[name]) for name in idle), (idle, under)
    until(lambda: here.status(made) == "active", 90)


def test_bytes_that_come_back_changed_are_asked_for_again_and_logged(stored: Stored, proxy: FaultProxy) -> None:
    here = stored
    with proxy.broken("flip"):
        made = here.deploy("flipped:drop")
        until(lambda: here.plant.logged("stored file corrupt"), 30)
        assert here.status(made) == "deploying"
    until(lambda: here.status(made) == "active", 60)


def test_a_lost_object_is_an_error_in_the_log_and_named(stored: Stored, proxy: FaultProxy) -> None:
    here = stored
    with proxy.broken("lose"):
        made = here.deploy("lost:drop")
        until(lambda: here.status(made) in ("failed", "rolling_back", "rolled_back"), 60)
    digest = here.api.get(f"{here.path}/deployments/{made}")["bundle_sha256"]
    lines = [json.loads(line) for line in whole_lines(here.plant.log) if "stored file missing" in line]
    assert lines
    assert (lines[-1]["level"], lines[-1]["sha256"]) == ("error", digest)
