"""The demo: a tenant with a user of each role, and a redaction pipeline on three agents with an active and a pending deployment."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection

from apps.access.models import Membership, User
from apps.access.principals import Principal, person_principal
from apps.access.roles import Role
from apps.agents.models import Agent
from apps.agents.services import create_enrollment_token
from apps.approvals.models import Approval
from apps.approvals.selectors import current_facts
from apps.approvals.services import decide
from apps.console.setup import OPERATOR, add_person
from apps.core.errors import ServiceError
from apps.core.processes import die_with_parent
from apps.deployments.models import ConfigBundle, Deployment, DeploymentStatus
from apps.deployments.services import create_bundle, request_deployment
from apps.deployments.services.requests import Selector
from apps.pipelines.models import PipelineVersion
from apps.pipelines.services import create_draft, promote_draft
from apps.runtime.agent.build import build_pyz
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import scope_of
from apps.tenancy.services import create_environment, create_organization, create_project

ORGANIZATION = "Demo Shop"
PEOPLE = (
    ("ada", "Ada Admin", Role.ORG_ADMIN),
    ("pia", "Pia Project", Role.PROJECT_ADMIN),
    ("oleg", "Oleg Operator", Role.OPERATOR),
    ("rita", "Rita Reviewer", Role.OPERATOR),
    ("vera", "Vera Viewer", Role.VIEWER),
)
AGENTS = ("till-berlin", "till-lyon", "till-porto")

SPEC = """\
spec.version=1
pipeline.name=orders-redaction
pipeline.target=SingleRing
single_ring.stages.0.id=intake
single_ring.stages.0.op=identity
single_ring.stages.1.id=check
single_ring.stages.1.op=dataguard_check
single_ring.stages.1.depends_on.0=0
single_ring.stages.2.id=redact
single_ring.stages.2.op=dataguard_redact
single_ring.stages.2.depends_on.0=1
"""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["order_id", "customer"],
    "properties": {"order_id": {"type": "string"}, "customer": {"type": "object"}},
}
FIRST_RULES = ["customer.email:mask=1:4:*", "customer.card:drop"]
SECOND_RULES = ["customer.email:hash", "customer.card:mask=0:4:*", "customer.address:drop"]


def config_with(rules: list[str]) -> dict[str, Any]:
    """The demo's configuration with these redaction rules."""
    return {
        "tuning": {"profile": "default"},
        "adapters": {
            "ingress": {"type": "file", "path": "orders.jsonl"},
            "egress": {"type": "file", "path": "redacted.jsonl"},
        },
        "stages": {"check": {"schema": SCHEMA}, "redact": {"rules": rules}},
    }


@dataclass(frozen=True, slots=True)
class Demo:
    """The demo tenant."""

    scope: Scope
    environment_url: str
    accounts: list[dict[str, str]]

    def person(self, name: str) -> Principal:
        return person_principal(User.objects.get(email=f"{name}@demo.example"), via="command")


def accounts_file() -> Path:
    """Path of the file with the accounts (mode 0600)."""
    return Path(settings.BYTEOR_DATA_DIR) / "demo" / "accounts.json"


def prepare() -> Demo:
    """Create the demo tenant, or reuse the one of an earlier start. Deleted parts are created again."""
    path = accounts_file()
    known: list[dict[str, str]] = json.loads(path.read_text()) if path.exists() else []
    organization = Organization.objects.filter(name=ORGANIZATION, deleted_at__isnull=True).order_by("pk").first()
    if organization is None or not known:
        organization = create_organization(actor=OPERATOR, name=ORGANIZATION)
    accounts = _accounts(organization, {account["email"]: account for account in known})
    _keep(path, accounts)
    projects = Project.objects.filter(organization=organization, slug="orders", deleted_at__isnull=True)
    project = projects.first() or create_project(
        actor=OPERATOR, organization=organization, name="Orders", slug="orders"
    )
    environments = Environment.objects.select_related("project__organization").filter(
        project=project, slug="staging", deleted_at__isnull=True
    )
    environment = environments.first() or create_environment(
        actor=OPERATOR, project=project, name="Staging", slug="staging", posture="staging"
    )
    scope = scope_of(environment)
    url = (
        f"{settings.BYTEOR_API_BASE_URL}/orgs/{scope.organization_id}/projects/{scope.project_id}"
        f"/environments/{environment.pk}"
    )
    return Demo(scope, url, accounts)


def _accounts(organization: Organization, known: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """Create the demo's users as members; `known` are the accounts of an earlier start, which keep their passwords."""
    accounts: list[dict[str, str]] = []
    for handle, name, role in PEOPLE:
        email = f"{handle}@demo.example"
        account = known.get(email)
        member = Membership.objects.filter(organization=organization, project=None, email=email).exists()
        if account is None or not member or not User.objects.filter(email=email).exists():
            made = add_person(organization=organization, email=email, role=role, name=name)
            before = account["password"] if account else "(unchanged)"
            account = {
                "email": email,
                "password": made.password.reveal() if made.password else before,
                "role": str(role),
                "token": made.token.reveal(),
            }
        accounts.append(account)
    return accounts


def _keep(path: Path, accounts: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as out:
        json.dump(accounts, out, indent=2)


class Fleet:
    """Three agent processes, and the stream of fictitious orders that they read."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.root = Path(settings.BYTEOR_DATA_DIR) / "demo"
        self.children: list[subprocess.Popen[bytes]] = []
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the agents; each agent that is not enrolled gets an enrollment token."""
        try:
            self._start_agents()
        except (ServiceError, User.DoesNotExist) as error:
            self._give_up(error)
        threading.Thread(target=self._feed, name="orders", daemon=True).start()

    def _give_up(self, error: Exception) -> None:
        detail = error.detail if isinstance(error, ServiceError) else "one of its users was deleted."
        print(f"byteor: the demo could not be completed: {detail}", file=sys.stderr, flush=True)

    def _start_agents(self) -> None:
        program = self.root / "byteor-agent.pyz"
        program.write_bytes(build_pyz())
        for name in AGENTS:
            home = self.root / "agents" / name
            data = home / "data"
            data.mkdir(parents=True, exist_ok=True)
            (data / "orders.jsonl").touch()
            command = [sys.executable, str(program), "run", "--environment-url", self.demo.environment_url]
            command += ["--state-dir", str(home / "state"), "--data-dir", str(data), "--name", name]
            environment = dict(os.environ)
            if not self._is_enrolled(home / "state"):
                # state of another environment or of a deleted agent
                shutil.rmtree(home / "state", ignore_errors=True)
                made = create_enrollment_token(
                    actor=self.demo.person("oleg"),
                    scope=self.demo.scope,
                    name=f"demo {name}",
                    labels={"fleet": "tills"},
                )
                environment["BYTEOR_ENROLLMENT_TOKEN"] = made[1].reveal()
            log = (home / "agent.log").open("ab")
            self.children.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=die_with_parent)
            )
            log.close()

    def _is_enrolled(self, state: Path) -> bool:
        """True if the agent of this folder is still enrolled in the environment."""
        try:
            kept = json.loads((state / "agent.json").read_text())
        except (OSError, ValueError):
            return False
        return Agent.objects.filter(
            pk=kept["agent_id"], environment=self.demo.scope.require_environment(), revoked_at__isnull=True
        ).exists()

    def _feed(self) -> None:
        dice, number = random.Random(7), int(time.time())  # noqa: S311 - made-up orders
        while not self._stop.wait(0.5):
            for name in AGENTS:
                number += 1
                order = make_order(number, dice)
                with (self.root / "agents" / name / "data" / "orders.jsonl").open("a") as out:
                    out.write(json.dumps(order) + "\n")

    def stop(self) -> None:
        """End the agents and the stream."""
        self._stop.set()
        for child in self.children:
            child.terminate()
        for child in self.children:
            try:
                child.wait(timeout=4)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def seed(self) -> None:
        """Once the agents are enrolled, ensure one active and one pending deployment. Runs in its own thread."""
        try:
            self._seed()
        except (ServiceError, User.DoesNotExist) as error:
            self._give_up(error)
        finally:
            connection.close()

    def _wait(self, seconds: float, ready: Any) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stop.is_set():
            if ready():
                return True
            time.sleep(0.2)
        return False

    def _seed(self) -> None:
        scope, oleg, rita = self.demo.scope, self.demo.person("oleg"), self.demo.person("rita")
        alive = Agent.objects.filter(
            environment=scope.require_environment(), revoked_at=None, last_seen_at__isnull=False
        )
        if not self._wait(60, lambda: alive.count() >= len(AGENTS)):
            return
        version = PipelineVersion.objects.filter(environment=scope.require_environment()).order_by("pk").first()
        if version is None:
            draft = create_draft(actor=oleg, scope=scope, name="orders-redaction", spec=SPEC)
            version = promote_draft(actor=oleg, scope=scope, draft_id=draft.pk).version
        deployments = Deployment.objects.filter(environment=scope.require_environment())
        if not deployments.filter(status=DeploymentStatus.ACTIVE.value).exists():
            first = _bundle(oleg, scope, version, FIRST_RULES)
            asked = request_deployment(
                actor=oleg, scope=scope, bundle_id=first.pk, targets=Selector(everyone=True), reason="First rollout"
            )
            approval = Approval.objects.get(pk=asked.approval_id)
            decide(
                actor=rita,
                scope=scope,
                approval_id=approval.pk,
                decision="approve",
                comment="Looks right.",
                shown_digest=current_facts(approval).shown_digest,
            )
            self._wait(60, lambda: deployments.filter(status=DeploymentStatus.ACTIVE.value).exists())
        if not deployments.filter(status=DeploymentStatus.PENDING_APPROVAL.value).exists():
            latest = deployments.filter(status=DeploymentStatus.ACTIVE.value).order_by("-sequence").first()
            second = _bundle(oleg, scope, version, SECOND_RULES)
            if latest is not None and latest.bundle_id == second.pk:
                second = _bundle(oleg, scope, version, FIRST_RULES)
            request_deployment(
                actor=oleg,
                scope=scope,
                bundle_id=second.pk,
                targets=Selector(everyone=True),
                reason="Hash e-mail addresses, drop postal addresses",
            )


def _bundle(actor: Principal, scope: Scope, version: PipelineVersion, rules: list[str]) -> ConfigBundle:
    config = config_with(rules)
    for bundle in ConfigBundle.objects.filter(environment=scope.require_environment(), version_id=version.pk):
        if bundle.config == config:
            return bundle
    return create_bundle(actor=actor, scope=scope, version_id=version.pk, config=config)


def make_order(number: int, dice: random.Random) -> dict[str, Any]:
    """A fictitious order of a fictitious customer."""
    first = dice.choice(["Ana", "Bruno", "Chloé", "Dmitri", "Emre", "Fiona", "Gita", "Hugo"])
    last = dice.choice(["Almeida", "Berger", "Castro", "Dubois", "Evans", "Fischer"])
    return {
        "order_id": f"A-{number}",
        "total_cents": dice.randrange(500, 90_000),
        "customer": {
            "name": f"{first} {last}",
            "email": f"{first}.{last}@example.com".lower(),
            "card": "".join(str(dice.randrange(10)) for _ in range(16)),
            "address": {
                "street": f"{dice.randrange(1, 99)} High Street",
                "city": dice.choice(["Berlin", "Lyon", "Porto"]),
            },
        },
    }
