"""A tenant with an environment to enroll into, and clients of every kind of caller."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.conf import settings
from django.core.cache import caches
from django.db import connection, transaction
from django.test import Client

from apps.access import tokens
from apps.access.models import User
from apps.agents import heartbeat_cache
from apps.agents.models import Agent
from apps.agents.registry import (
    AgentReport,
    BundleDownload,
    Desired,
    Running,
    RunningDetail,
    desired_source,
    set_desired_source,
)
from apps.agents.services import set_running
from apps.core import wake
from apps.core.actors import ActorRef
from apps.core.errors import NotFound, ServiceError
from apps.tenancy.models import Environment, Organization
from tests.agents.people import SYSTEM, make_world_tree
from tests.copies import Copies
from tests.served import Served, serving

__all__ = ["SYSTEM", "EnrolledAgent", "FakeSource", "World"]


class Caller:
    """An HTTP client that sends one credential, or none."""

    def __init__(self, token: str | None = None, client: Client | None = None) -> None:
        self.token = token or ""
        self._client = client or Client()

    def raw(self, method: str, path: str, body: bytes, content_type: str = "application/json", **extra: str) -> Any:
        if self.token:
            extra["HTTP_AUTHORIZATION"] = f"Bearer {self.token}"
        return self._client.generic(method, path, body, content_type=content_type, **extra)

    def call(
        self,
        method: str,
        path: str,
        body: Any,
        *,
        idempotency_key: str | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
    ) -> Any:
        headers = {
            "HTTP_IDEMPOTENCY_KEY": idempotency_key,
            "HTTP_IF_MATCH": if_match,
            "HTTP_IF_NONE_MATCH": if_none_match,
        }
        given = {name: value for name, value in headers.items() if value is not None}
        return self.raw(method, path, b"" if body is None else json.dumps(body).encode(), **given)

    def get(self, path: str) -> Any:
        return self.call("GET", path, None)

    def post(self, path: str, body: Any, **headers: str | None) -> Any:
        return self.call("POST", path, body, **headers)

    def patch(self, path: str, body: Any, **headers: str | None) -> Any:
        return self.call("PATCH", path, body, **headers)

    def delete(self, path: str) -> Any:
        return self.call("DELETE", path, None)


class EnrolledAgent(Caller):
    """A host that enrolled: calls its own endpoints by the path after its id."""

    def __init__(self, world: World, agent_id: str, key: str) -> None:
        super().__init__(key)
        self.id = agent_id
        self.path = f"/api/v1/agents/{agent_id}"

    def raw(self, method: str, path: str, body: bytes, content_type: str = "application/json", **extra: str) -> Any:
        return super().raw(method, f"{self.path}/{path}", body, content_type, **extra)

    def heartbeat_body(self) -> dict[str, Any]:
        return {"status": "idle", "version": "1.0", "running": None, "key_set_version": 1}

    def beat(self, **change: Any) -> Any:
        return self.post("heartbeat", {**self.heartbeat_body(), **change})


@dataclass
class FakeSource:
    """A fake of the app that deploys: returns the desired states that a test sets, and stores the calls."""

    wanted: Desired = field(default_factory=Desired)
    blockers: list[str] = field(default_factory=list)
    refusal: ServiceError | None = None
    in_flight: bool = False
    bundles: dict[tuple[uuid.UUID, uuid.UUID], bytes] = field(default_factory=dict)
    reports: list[tuple[uuid.UUID, uuid.UUID, AgentReport]] = field(default_factory=list)
    heartbeats: list[tuple[uuid.UUID, bool, Running | None]] = field(default_factory=list)
    removed: list[uuid.UUID] = field(default_factory=list)

    def desired(self, agent: Agent) -> Desired:
        return self.wanted

    def desired_of_each(self, agent_ids: Sequence[uuid.UUID]) -> Mapping[uuid.UUID, Desired]:
        return dict.fromkeys(agent_ids, self.wanted)

    def report(self, *, agent: Agent, deployment_id: uuid.UUID, report: AgentReport) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.reports.append((agent.pk, deployment_id, report))
        with transaction.atomic():
            if report.status == "activated":
                set_running(
                    agent,
                    deployment_id=deployment_id,
                    bundle_sha256=report.bundle_sha256,
                    sequence=report.sequence,
                )

    def require_target(self, agent: Agent, deployment_id: uuid.UUID) -> None:
        return None

    def bundle_for(self, agent: Agent, deployment_id: uuid.UUID) -> BundleDownload:
        data = self.bundles.get((agent.pk, deployment_id))
        if data is None:
            raise NotFound()
        return BundleDownload(io.BytesIO(data), len(data), "ab" * 32)

    def removal_blockers(self, agent: Agent) -> list[str]:
        return self.blockers

    def settle_targets_of_agent(self, *, actor: ActorRef, agent: Agent) -> None:
        self.removed.append(agent.pk)

    def heartbeat_seen(self, agent: Agent, healthy: bool, running: Running | None) -> None:
        self.heartbeats.append((agent.pk, healthy, running))

    def running_detail(self, agent: Agent) -> RunningDetail:
        return RunningDetail()

    def has_in_flight(self, agent: Agent) -> bool:
        return self.in_flight


@dataclass
class World:
    """Alice administers, bob operates, vera views; charlie is of another tenant and administers that."""

    organization: Organization
    environment: Environment
    other: Environment
    foreign: Environment
    people: dict[str, User]
    pats: dict[str, str]

    def _url(self, environment: Environment) -> str:
        project = environment.project
        return f"/api/v1/orgs/{project.organization_id}/projects/{project.pk}/environments/{environment.pk}"

    @property
    def env(self) -> str:
        return self._url(self.environment)

    @property
    def other_env(self) -> str:
        return self._url(self.other)

    @property
    def foreign_env(self) -> str:
        return self._url(self.foreign)

    @property
    def alice(self) -> Caller:
        return Caller(self.pats["alice"])

    @property
    def bob(self) -> Caller:
        return Caller(self.pats["bob"])

    @property
    def vera(self) -> Caller:
        return Caller(self.pats["vera"])

    @property
    def charlie(self) -> Caller:
        return Caller(self.pats["charlie"])

    @property
    def anonymous(self) -> Caller:
        return Caller()

    def holder(self, text: str) -> Caller:
        return Caller(text)

    def signed_in(self, name: str) -> Caller:
        client = Client()
        client.force_login(self.people[name])
        return Caller(client=client)

    def token(self, *, foreign: bool = False, **body: Any) -> str:
        client, where = (self.charlie, self.foreign_env) if foreign else (self.bob, self.env)
        return str(client.post(f"{where}/enrollment-tokens", body).json()["token"])

    def enroll(
        self,
        *,
        foreign: bool = False,
        name: str | None = None,
        labels: dict[str, str] | None = None,
        reported: dict[str, str] | None = None,
    ) -> EnrolledAgent:
        token = self.token(foreign=foreign, labels=labels or {})
        where = self.foreign_env if foreign else self.env
        answer = self.holder(token).post(f"{where}/agents", {"name": name, "labels": reported or {}})
        assert answer.status_code == 201, answer.content
        return EnrolledAgent(self, answer.json()["agent_id"], answer.json()["api_key"])

    def beat(self, agent_id: str, key: str) -> Any:
        return EnrolledAgent(self, agent_id, key).beat()

    def unknown(self, family: str) -> str:
        """A well-formed token that was never given out."""
        return tokens.mint(family).text.reveal()

    def at_once(self, calls: Sequence[Callable[[], object]]) -> None:
        """Run `calls` in a thread each; what one raises is raised here."""
        raised: list[BaseException] = []

        def guarded(call: Callable[[], object]) -> None:
            try:
                call()
            except BaseException as error:
                raised.append(error)
            finally:
                connection.close()

        threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        if raised:
            raise raised[0]

    def in_transaction(self, call: Callable[[], object], *, write: bool) -> None:
        """Run `call` in a transaction that also changes a row, as every announcement comes with one."""
        with transaction.atomic():
            if write:
                Organization.objects.filter(pk=self.organization.pk).update(name="changed")
            call()

    @contextlib.contextmanager
    def other_process(self, code: str) -> Iterator[None]:
        """Run `code` in a process of its own that uses the same test database: it is up inside, and has ended after."""
        name = str(connection.settings_dict["NAME"])
        prelude = (
            "import os, django\n"
            "from django.conf import settings\n"
            f"settings.DATABASES['default']['NAME'] = {name!r}\n"
            "django.setup()\n"
            "print('up', flush=True)\n"
            "input()\n"
        )
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": os.environ.get("DJANGO_SETTINGS_MODULE", "byteor.settings"),
        }
        with subprocess.Popen(
            [sys.executable, "-c", prelude + code],
            env=environment,
            cwd=settings.BASE_DIR,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield
            _, output = process.communicate("\n", timeout=120)
        assert process.returncode == 0, output


_trees = Copies(make_world_tree)


@pytest.fixture
def world(db: None) -> World:
    """A tenant with two environments in one project, and a second tenant."""
    caches["limits"].clear()
    return World(**_trees.make())


@pytest.fixture(params=[True, False], ids=["cached", "uncached"])
def heartbeats_cached(request: pytest.FixtureRequest, settings: Any) -> Iterator[bool]:
    """Runs a test twice: as a server does with the heartbeat cache, and with the cache switched off. On SQLite both are
    without it."""
    settings.BYTEOR_HEARTBEAT_CACHE = request.param
    heartbeat_cache.open_heartbeat_cache()
    yield request.param
    heartbeat_cache.close_heartbeat_cache()
    wake.close()


@pytest.fixture
def server(transactional_db: None) -> Iterator[Served]:
    """The product as it is served."""
    with serving() as served:
        yield served


@pytest.fixture
def source() -> Iterator[FakeSource]:
    """The app above, as the tests want it."""
    fake = FakeSource()
    previous = desired_source()
    set_desired_source(fake)
    yield fake
    set_desired_source(previous)
