#!/usr/bin/env python3
"""A first deployment over the API: draft, version, config bundle, request, approval, and what runs in the end.

With `make up` running in another terminal:

    python3 docs/first_deployment.py

Needs nothing but Python. Each step prints the call that it makes. docs/api.md has the rules of all calls.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SPEC = """\
spec.version=1
pipeline.name=hello
pipeline.target=SingleRing
single_ring.stages.0.id=redact
single_ring.stages.0.op=dataguard_redact
"""
CONFIG = {
    "adapters": {
        "ingress": {"type": "file", "path": "orders.jsonl"},
        "egress": {"type": "file", "path": "hello.jsonl"},
    },
    "stages": {"redact": {"rules": ["customer:drop"]}},
}


class Api:
    """Calls with one person's token."""

    def __init__(self, base: str, accounts: list[dict[str, str]], name: str) -> None:
        self.base, self.name = base, name
        self.token = next(each["token"] for each in accounts if each["email"].startswith(f"{name}@"))

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's JSON. Exits with the problem document when the call is refused."""
        print(f"{self.name:>5}  {method} {path}")
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=40) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            sys.exit(error.read().decode())
        except urllib.error.URLError as error:
            sys.exit(f"no answer from {self.base}: {error.reason}. Is `make up` running?")

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        return self.call("POST", path, body)


def main() -> None:
    """Oleg asks, Rita approves, the agents run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080/api/v1")
    parser.add_argument("--accounts", type=Path, default=Path(".byteor/demo/accounts.json"))
    parser.add_argument("--seconds", type=float, default=60, help="how long to wait for the agents")
    given = parser.parse_args()
    if not given.accounts.exists():
        sys.exit(f"there is no {given.accounts}: `make up` makes it")
    accounts = json.loads(given.accounts.read_text())
    oleg, rita = Api(given.url, accounts, "oleg"), Api(given.url, accounts, "rita")

    # where: the one environment of the demo
    org = f"/orgs/{oleg.get('/me')['roles'][0]['organization_id']}"
    project = f"{org}/projects/{oleg.get(f'{org}/projects')['results'][0]['id']}"
    env = f"{project}/environments/{oleg.get(f'{project}/environments')['results'][0]['id']}"

    # what: a spec, frozen as a version, with a config
    draft = oleg.post(f"{env}/drafts", {"name": "hello", "spec": SPEC})
    version = oleg.post(f"{env}/drafts/{draft['id']}/promote")
    bundle = oleg.post(f"{env}/bundles", {"version_id": version["id"], "config": CONFIG})

    # the request, and another user's decision on exactly what is shown
    asked = oleg.post(f"{env}/deployments", {"bundle_id": bundle["id"], "targets": {"all": True}, "reason": "my first"})
    approval = rita.get(f"{env}/approvals/{asked['approval_id']}")
    rita.post(f"{env}/approvals/{approval['id']}/approve", {"shown_digest": approval["shown_digest"]})

    # build, signature, directives and reports happen by themselves
    deadline = time.monotonic() + given.seconds
    while True:
        deployment = oleg.get(f"{env}/deployments/{asked['id']}")
        if deployment["status"] == "active":
            break
        if deployment["status"] in ("failed", "denied") or time.monotonic() > deadline:
            sys.exit(f"it is {deployment['status']}: {deployment['status_reason']}")
        time.sleep(0.5)
    for target in oleg.get(f"{env}/deployments/{asked['id']}/targets")["results"]:
        print(f"       {target['agent_name']}: {target['status']}")
    print("active")


if __name__ == "__main__":
    main()
