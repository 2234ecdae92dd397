"""Every method of every path of the API succeeds at least once, with an ordinary request of someone who may make it.

A new path fails `test_every_method_of_every_path_succeeds` until a step here calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.urls import get_resolver, resolve

from apps.deployments.models import ConfigBundle
from apps.jobs.models import Job
from tests.api.test_order_of_checks import patterns
from tests.deployments.world import SPEC, World
from tests.support import Caller, Tenant

pytestmark = pytest.mark.django_db

PREFIX = "api/v1/"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def routes() -> set[tuple[str, str]]:
    """(method, route) of everything that the URL configuration has below the API's prefix."""
    found = set()
    for route, pattern in patterns(get_resolver()):
        if route.startswith(PREFIX):
            view: Any = pattern.callback.view_class  # type: ignore[attr-defined]
            allowed = [method for method in METHODS if hasattr(view, method.lower())]
            found |= {(method, route) for method in allowed if method.lower() in view.http_method_names}
    return found


class Sweep:
    """Makes requests that succeed, and keeps which (method, route) did."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.alice, self.bob, self.carol = (tenant.caller(name) for name in ("alice", "bob", "carol"))
        self.org = f"/orgs/{tenant.organization.pk}"
        self.project = f"{self.org}/projects/{tenant.project.pk}"
        self.env = tenant.path()
        self.succeeded: set[tuple[str, str]] = set()

    def __call__(
        self, caller: Caller, request: str, body: Any = None, *, status: int = 200, **headers: str
    ) -> dict[str, Any]:
        """Call `METHOD /path`, which must be answered by exactly this status; the JSON of the answer."""
        method, path = request.split(" ")
        answer = caller._json(method, path, body, headers)
        assert answer.status_code == status, (request, answer.content)
        self.succeeded.add((method, resolve(f"/{PREFIX}{path[1:].partition('?')[0]}").route))
        content = b"".join(answer.streaming_content) if answer.streaming else answer.content
        is_json = content and "json" in answer.get("Content-Type", "")
        return {**(answer.json() if is_json else {}), "etag": answer.get("ETag", "")}


def own_account(call: Sweep) -> None:
    call(call.bob, "GET /me")
    call(call.bob, "GET /me/approvals")
    token = call(call.bob, "POST /me/tokens", {"name": "laptop"}, status=201)
    call(call.bob, "GET /me/tokens")
    call(call.bob, f"DELETE /me/tokens/{token['id']}", status=204)


def tree(call: Sweep) -> None:
    alice = call.alice
    organization = call(alice, "POST /orgs", {"name": "New"}, status=201)
    call(alice, "GET /orgs")
    org = f"/orgs/{organization['id']}"
    project = f"{org}/projects/{call(alice, f'POST {org}/projects', {'name': 'New'}, status=201)['id']}"
    call(alice, f"GET {org}/projects")
    made = call(alice, f"POST {project}/environments", {"name": "New", "posture": "prod"}, status=201)
    call(alice, f"GET {project}/environments")
    environment = f"{project}/environments/{made['id']}"
    for path in (environment, project, org):
        shown = call(alice, f"GET {path}")
        shown.pop("etag")
        call(alice, f"PUT {path}", {**shown, "name": "Renamed"})
        call(alice, f"PATCH {path}", {"name": "Again"})
        call(alice, f"DELETE {path}", status=204)


def members(call: Sweep) -> None:
    for place in (call.org, call.project):
        invited = call(call.alice, f"POST {place}/members", {"email": "x@example.com", "role": "viewer"}, status=201)
        call(call.alice, f"GET {place}/members")
        call(call.alice, f"GET {place}/members/{invited['id']}")
        call(call.alice, f"PUT {place}/members/{invited['id']}", {"role": "operator"})
        call(call.alice, f"DELETE {place}/members/{invited['id']}", status=204)


def pipelines(call: Sweep) -> None:
    bob, drafts = call.bob, f"{call.env}/drafts"
    draft = call(bob, f"POST {drafts}", {"name": "orders", "spec": SPEC}, status=201)
    one = f"{drafts}/{draft['id']}"
    call(bob, f"GET {drafts}")
    call(bob, f"GET {one}")
    call(bob, f"PUT {one}", {"name": "orders", "spec": SPEC}, if_match="*")
    call(bob, f"PATCH {one}", {"name": "renamed"}, if_match="*")
    call(bob, f"POST {one}/preview", {})
    version = call(bob, f"POST {one}/promote", {}, status=201)
    call(bob, f"DELETE {one}", status=204, if_match="*")
    versions = f"{call.env}/versions"
    call(bob, f"GET {versions}")
    call(bob, f"GET {versions}/{version['id']}")
    call(bob, f"GET {versions}/{version['id']}/spec")
    copy = {"to_environment_id": str(call.tenant.staging.pk)}
    copied = call(bob, f"POST {versions}/{version['id']}/copy", copy, status=201)
    call(bob, f"GET {versions}/{version['id']}/diff?against={copied['id']}")


def enrollment(call: Sweep) -> None:
    tokens = f"{call.env}/enrollment-tokens"
    token = call(call.bob, f"POST {tokens}", {"max_uses": 2}, status=201)
    call(call.bob, f"GET {tokens}")
    call(call.bob, f"GET {tokens}/{token['id']}")
    agents = f"{call.env}/agents"
    first, second = (call(Caller(token["token"]), f"POST {agents}", {}, status=201)["agent_id"] for _ in range(2))
    call(call.bob, f"GET {agents}")
    call(call.bob, f"GET {agents}/{first}")
    call(call.bob, f"PATCH {agents}/{first}", {"name": "renamed"})
    call(call.bob, f"POST {agents}/{second}/revoke-key", {})
    call(call.bob, f"DELETE {agents}/{first}", status=204)
    call(call.bob, f"DELETE {tokens}/{token['id']}", status=204)


def deploying(call: Sweep) -> None:
    world = World(call.tenant, call.tenant.dev)
    [host] = world.enroll(1)
    bundles, deployments = f"{call.env}/bundles", f"{call.env}/deployments"
    config = {"stages": {"redact": {"rules": ["a:drop"]}}}
    unused = call(call.bob, f"POST {bundles}", {"version_id": world.version(), "config": config}, status=201)["id"]
    call(call.bob, f"GET {bundles}")
    call(call.bob, f"GET {bundles}/{unused}")
    call(call.bob, f"DELETE {bundles}/{unused}", status=204)
    call(call.bob, "GET /schemas/config-bundle")
    wanted = {"bundle_id": world.bundle("b:drop"), "targets": {"all": True}}
    made = call(call.bob, f"POST {deployments}", wanted, status=201)["id"]
    world.work()
    call(call.bob, f"GET {deployments}")
    for below in ("", "/targets", "/events"):
        call(call.bob, f"GET {deployments}/{made}{below}")
    agent(call, world, made)
    call(call.bob, f"POST {deployments}/{made}/rollback", {})
    world.settle()
    again = call(call.bob, f"POST {deployments}", wanted, status=201)["id"]
    call(call.bob, f"POST {deployments}/{again}/cancel", {"reason": "called off"})
    call(call.alice, f"PATCH {call.env}", {"agent_upgrade_percent": 100})
    call(host.http, f"GET /agents/{host.id}/release")
    call(host.http, f"GET /agents/{host.id}/release/byteor-agent.pyz")
    call(host.http, f"POST /agents/{host.id}/rotate-key", {})


def agent(call: Sweep, world: World, deployment: str) -> None:
    [host] = world.hosts
    me = f"/agents/{host.id}"
    beat = {"status": "idle", "version": "1.0", "running": None, "key_set_version": 1}
    wanted = call(host.http, f"POST {me}/heartbeat", beat)["desired"]["directive"]
    call(host.http, f"GET {me}/deployment?after=0")
    call(host.http, f"GET {me}/signing-keys?after=0")
    call(host.http, f"GET {me}/deployments/{deployment}/bundle")
    about = {name: wanted[name] for name in ("bundle_sha256", "sequence")}
    call(host.http, f"POST {me}/deployments/{deployment}/status", {"status": "activated", **about})


def approvals(call: Sweep) -> None:
    world = World(call.tenant, call.tenant.staging)
    world.enroll(1)
    here = f"{world.path}/approvals"
    for verb, who in (("approve", call.carol), ("deny", call.carol), ("revoke", call.bob)):
        one = world.approval(world.request(world.bundle(f"{verb}:drop")))
        body = {"comment": "seen", "shown_digest": one["shown_digest"]}
        call(who, f"POST {here}/{one['id']}/{verb}", {"comment": "seen"} if verb == "revoke" else body)
        if verb == "approve":
            call(call.bob, f"GET {here}/{one['id']}/credential")
    call(call.bob, f"GET {here}")
    call(call.bob, f"GET {here}/{one['id']}")


def jobs(call: Sweep) -> None:
    world = World(call.tenant, call.tenant.dev)
    made = world.row(world.request(world.bundle("gone:drop")))
    ConfigBundle.objects.filter(pk=made.bundle_id).delete()
    world.work()
    dead = Job.objects.get(subject_id=made.pk)
    call(call.bob, f"GET {call.org}/jobs")
    call(call.bob, f"GET {call.env}/jobs")
    call(call.bob, f"GET {call.env}/jobs/{dead.pk}")
    call(call.bob, f"POST {call.env}/jobs/{dead.pk}/retry", {})


def signing_keys(call: Sweep) -> None:
    keys = f"{call.org}/signing-keys"
    [former] = [key["kid"] for key in call(call.bob, f"GET {keys}")["results"]]
    call(call.alice, f"POST {keys}", {}, status=201)
    call(call.alice, f"POST {keys}/{former}/retire", {})
    call(call.alice, f"POST {keys}/{former}/revoke", {})


STEPS: tuple[Callable[[Sweep], None], ...] = (
    own_account, tree, members, pipelines, enrollment, deploying, approvals, jobs, signing_keys,
)  # fmt: skip


def test_every_method_of_every_path_succeeds(tenant: Tenant) -> None:
    sweep = Sweep(tenant)
    for step in STEPS:
        step(sweep)
    missing = sorted(f"{method} {route}" for method, route in routes() - sweep.succeeded)
    assert not missing, f"add a call to a step of {__name__}: " + ", ".join(missing)
    assert len(sweep.succeeded) >= 80
