"""A tenant with a pipeline and hosts that check what they are given the way the reference agent does."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from apps.core import clock
from apps.deployments.models import Deployment, Target
from apps.jobs.models import Job
from apps.jobs.runner import drain
from apps.runtime import trust
from apps.runtime.bundle import VerifiedBundle, read_bundle, verify_bundle
from apps.tenancy.models import Environment
from tests.support import Caller, Tenant

SPEC = """spec.version=1
pipeline.name=orders
pipeline.target=SingleRing
single_ring.stages.0.id=redact
single_ring.stages.0.op=dataguard_redact
"""


class Host:
    """An agent process, in this process: enrolls, checks directives and bundles with the agents' own code, reports."""

    def __init__(self, world: World, answer: dict[str, Any]) -> None:
        self.world = world
        self.id: str = answer["agent_id"]
        self.http = Caller(answer["api_key"])
        self.keys = trust.accept_keyset(None, answer["signing_keys"]["envelopes"])
        self.last_seq = 0
        self.last_digest: str | None = None
        self.highest = 0
        self.running: VerifiedBundle | None = None
        self.reported: list[tuple[str, str, int]] = []

    @property
    def pk(self) -> uuid.UUID:
        return uuid.UUID(self.id)

    def heartbeat(self, health: dict[str, Any] | None = None) -> trust.Directive:
        """One round trip; the directive is verified as a host would. `health`: {ok, detail}."""
        running = self.running
        answer = self.http.post(
            f"/agents/{self.id}/heartbeat",
            {
                "status": "running" if running else "idle",
                "version": "1.0",
                "key_set_version": self.keys.version,
                "running": {
                    "deployment_id": running.deployment_id,
                    "bundle_sha256": running.sha256,
                    "sequence": running.sequence,
                }
                if running
                else None,
                "health": health,
            },
        )
        assert answer.status_code == 200, answer.content
        desired = answer.json()["desired"]
        directive = trust.verify_directive(
            desired["envelope"],
            self.keys,
            environment_id=str(self.world.env.pk),
            agent_id=self.id,
            now_ms=clock.now_ms(),
            last_seq=self.last_seq,
            last_content_digest=self.last_digest,
        )
        assert directive.as_dict() == desired["directive"]
        self.last_seq, self.last_digest = directive.directive_seq, directive.content_digest()
        self.url = answer.json()["url"]
        return directive

    def _send(self, deployment_id: str | None, status: str, **more: Any) -> Any:
        answer = self.http.post(f"/agents/{self.id}/deployments/{deployment_id}/status", {"status": status, **more})
        self.reported.append((str(deployment_id), status, answer.status_code))
        return answer

    def send_report(
        self, deployment_id: str | None, status: str, sha256: str | None, sequence: int | None, **more: Any
    ) -> int:
        """A status report; the status of the answer."""
        return int(self._send(deployment_id, status, bundle_sha256=sha256, sequence=sequence, **more).status_code)

    def refusal(self, directive: trust.Directive, status: str, **more: Any) -> tuple[int, str]:
        """A report on what `directive` asks for, that is refused: status and code of the answer."""
        about = {"bundle_sha256": directive.bundle_sha256, "sequence": directive.sequence}
        answer = self._send(directive.for_deployment_id, status, **about, **more)
        return answer.status_code, answer.json()["code"]

    def report(self, directive: trust.Directive, status: str, **more: Any) -> int:
        """A report on what `directive` asks for."""
        return self.send_report(
            directive.for_deployment_id, status, directive.bundle_sha256, directive.sequence, **more
        )

    def fetch(self, directive: trust.Directive) -> VerifiedBundle:
        """Fetch what `directive` asks for and verify every byte of it."""
        answer = self.http.get(f"/agents/{self.id}/deployments/{directive.deployment_id}/bundle")
        assert answer.status_code == 200, answer.content
        data = b"".join(answer.streaming_content)
        if directive.directive == "activate":
            assert (directive.sequence or 0) >= self.highest, "an older bundle without a rollback directive"
        return verify_bundle(
            read_bundle(data),
            keys=self.keys,
            expected_sha256=directive.bundle_sha256,
            environment_id=str(self.world.env.pk),
            posture=self.world.env.posture,
            org_id=str(self.world.env.organization_id),
            project_id=str(self.world.env.project_id),
            deployment_id=directive.deployment_id,
            sequence=directive.sequence,
        )

    def step(self, fail: bool = False) -> str:
        """Do what the directive of a heartbeat asks for, to the end. Answers its word."""
        directive = self.heartbeat()
        if directive.directive == "none":
            return "none"
        if directive.directive == "stop":
            self.running = None
            self.report(directive, "stopped")
            return "stop"
        if self.running is None or self.running.sha256 != directive.bundle_sha256:
            fetched = self.fetch(directive)
            assert self.report(directive, "fetched") == 200
            assert self.report(directive, "verified") == 200
            if fail:
                self.report(directive, "failed", reason="bad_health: it did not start")
                return directive.directive
            self.running = fetched
            self.highest = max(self.highest, fetched.sequence)
        elif fail:
            self.report(directive, "failed", reason="bad_health: it did not start")
            return directive.directive
        self.report(directive, "rolled_back" if directive.directive == "rollback" else "activated")
        return directive.directive

    @property
    def runs(self) -> str | None:
        """The deployment that it really runs."""
        return self.running.deployment_id if self.running else None


@dataclass
class World:
    """One environment (dev: no approval is needed), its people and its hosts."""

    tenant: Tenant
    env: Environment
    hosts: list[Host] = field(default_factory=list)
    callers: dict[str, Caller] = field(default_factory=dict)
    version_id: str = ""

    @property
    def path(self) -> str:
        return self.tenant.path(self.env)

    def caller(self, name: str) -> Caller:
        if name not in self.callers:
            self.callers[name] = self.tenant.caller(name)
        return self.callers[name]

    @property
    def bob(self) -> Caller:
        return self.caller("bob")

    def enroll(self, count: int = 1, *, at: str | None = None, who: str = "bob") -> list[Host]:
        """New hosts, enrolled over HTTP."""
        path = at or self.path
        token = self.caller(who).post(f"{path}/enrollment-tokens", {"max_uses": count}).json()["token"]
        fresh = []
        for _ in range(count):
            answer = Caller(token).post(f"{path}/agents", {})
            assert answer.status_code == 201, answer.content
            fresh.append(Host(self, answer.json()))
        self.hosts += fresh
        return fresh

    def version(self, spec: str = SPEC, *, at: str | None = None, who: str = "bob") -> str:
        """A promoted version, over HTTP."""
        path, caller = at or self.path, self.caller(who)
        draft = caller.post(f"{path}/drafts", {"name": "orders", "spec": spec})
        assert draft.status_code == 201, draft.content
        promoted = caller.post(f"{path}/drafts/{draft.json()['id']}/promote", {}, if_match=draft["ETag"])
        assert promoted.status_code in (200, 201), promoted.content
        return str(promoted.json()["id"])

    def bundle(self, rule: str = "email:drop", *, at: str | None = None, who: str = "bob") -> str:
        """A config bundle of the one version, over HTTP."""
        if at is None and not self.version_id:
            self.version_id = self.version()
        version_id = self.version_id if at is None else self.version(at=at, who=who)
        answer = self.caller(who).post(
            f"{at or self.path}/bundles",
            {"version_id": version_id, "config": {"stages": {"redact": {"rules": [rule]}}}},
        )
        assert answer.status_code == 201, answer.content
        return str(answer.json()["id"])

    def labels(self, host: Host, **labels: str | None) -> None:
        """An operator labels a host."""
        answer = self.bob.patch(f"{self.path}/agents/{host.id}", {"labels": labels})
        assert answer.status_code == 200, answer.content

    def ask(self, bundle: str | None = None, targets: Any = None, who: str = "bob", **more: Any) -> Any:
        """POST deployments; the raw answer."""
        if isinstance(targets, list):
            targets = {"agent_ids": [host.id for host in targets]}
        body = {"bundle_id": bundle or self.bundle(), "targets": targets or {"all": True}, **more}
        return self.caller(who).post(f"{self.path}/deployments", body)

    def request(self, bundle: str | None = None, targets: Any = None, **more: Any) -> str:
        """A deployment that was taken: its id."""
        answer = self.ask(bundle, targets, **more)
        assert answer.status_code == 201, answer.content
        return str(answer.json()["id"])

    def work(self) -> None:
        """Run every queued job, as the worker would."""
        drain()

    def settle(self, *hosts: Host) -> None:
        """Let hosts carry out their directives."""
        for host in hosts or self.hosts:
            host.step()

    def roll_out(self, bundle: str | None = None, targets: Any = None, **more: Any) -> str:
        """A deployment all the way to active."""
        made = self.request(bundle, targets, **more)
        self.work()
        self.settle(*(targets if isinstance(targets, list) else ()))
        assert self.status(made) == "active", self.show(made)
        return made

    def roll_out_approved(self, bundle: str | None = None, targets: Any = None, **more: Any) -> str:
        """Like `roll_out`, where an approval is needed."""
        made = self.request(bundle, targets, **more)
        assert self.decide(made).status_code == 200
        self.work()
        self.settle(*(targets if isinstance(targets, list) else ()))
        assert self.status(made) == "active", self.show(made)
        return made

    def show(self, deployment: str, who: str = "bob") -> dict[str, Any]:
        answer = self.caller(who).get(f"{self.path}/deployments/{deployment}")
        assert answer.status_code == 200, answer.content
        return dict(answer.json())

    def status(self, deployment: str) -> str:
        return str(self.show(deployment)["status"])

    def act(self, deployment: str, verb: str, who: str = "bob", body: Any = None) -> Any:
        """POST rollback or cancel."""
        given = body or ({"reason": "called off"} if verb == "cancel" else {})
        return self.caller(who).post(f"{self.path}/deployments/{deployment}/{verb}", given)

    def approval(self, deployment: str) -> dict[str, Any]:
        made = self.show(deployment)
        answer = self.bob.get(f"{self.path}/approvals/{made['approval_id']}")
        assert answer.status_code == 200, answer.content
        return dict(answer.json())

    def decide(self, deployment: str, verb: str = "approve", who: str = "carol") -> Any:
        """Approve or deny what is shown now."""
        approval = self.approval(deployment)
        body = {"comment": "seen", "shown_digest": approval["shown_digest"]}
        if verb == "revoke":
            body = {"comment": "seen"}
        return self.caller(who).post(f"{self.path}/approvals/{approval['id']}/{verb}", body)

    def targets(self, deployment: str) -> dict[str, dict[str, Any]]:
        answer = self.bob.get(f"{self.path}/deployments/{deployment}/targets?limit=200")
        return {row["agent_id"]: row for row in answer.json()["results"]}

    def phases(self, deployment: str) -> list[str]:
        """The state of each phase."""
        return [phase["status"] for phase in self.show(deployment)["phases"]]

    def moves(self, deployment: str) -> list[tuple[str | None, str, str]]:
        """(from, to, trigger), oldest first, as the API lists them."""
        answer = self.bob.get(f"{self.path}/deployments/{deployment}/events?limit=200")
        return [(e["from"], e["to"], e["trigger"]) for e in reversed(answer.json()["results"])]

    def row(self, deployment: str) -> Deployment:
        row: Deployment = Deployment.objects.get(pk=deployment)
        return row

    def target(self, deployment: str, host: Host) -> Target:
        return Target.objects.get(deployment_id=deployment, agent_id=host.id)

    def current(self) -> str | None:
        return self.bob.get(self.path).json()["current_deployment_id"]  # type: ignore[no-any-return]

    def builds(self, status: str = "queued") -> list[str]:
        """The deployments whose build job is `status`."""
        rows = Job.objects.filter(type="deploy_bundle_build", status=status).order_by("pk")
        return [str(pk) for pk in rows.values_list("subject_id", flat=True)]


__all__ = ["SPEC", "Host", "World"]
