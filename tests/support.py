"""People, a tenant and an HTTP caller, made through the services as a user would."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.test import Client

from apps.access import services as access
from apps.access.models import Membership, MemberStatus, User
from apps.access.principals import Principal, person_principal
from apps.access.roles import Role
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR
from apps.core.triggers import TriggerOperation
from apps.jobs import chores, registry
from apps.tenancy import services as tenancy
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.scope import Scope

PASSWORD = "correct horse battery staple"


class Caller:
    """An API client that sends one bearer credential, or none. Paths are relative to /api/v1."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self._client = Client()

    def raw(
        self, method: str, path: str, body: bytes = b"", content_type: str = "application/json", **extra: Any
    ) -> Any:
        if self.token:
            extra["HTTP_AUTHORIZATION"] = f"Bearer {self.token}"
        return self._client.generic(method, f"/api/v1{path}", body, content_type=content_type, **extra)

    def _json(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Any:
        extra = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
        return self.raw(method, path, b"" if body is None else json.dumps(body).encode(), **extra)

    def get(self, path: str, **headers: str) -> Any:
        return self._json("GET", path, None, headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self._json("POST", path, body, headers)

    def put(self, path: str, body: Any, **headers: str) -> Any:
        return self._json("PUT", path, body, headers)

    def patch(self, path: str, body: Any, **headers: str) -> Any:
        return self._json("PATCH", path, body, headers)

    def delete(self, path: str, **headers: str) -> Any:
        return self._json("DELETE", path, None, headers)


def make_person(name: str, **fields: Any) -> User:
    """A person with the common test password, whose address is proved."""
    fields.setdefault("address_proved_at", clock.now())
    return User.objects.create_user(f"{name}@example.com", PASSWORD, name=name.capitalize(), **fields)


def give_role(user: User, role: Role, organization: Organization, project: Project | None = None) -> Membership:
    """An accepted membership."""
    return Membership.objects.create(
        organization=organization, project=project, user=user, email=user.email, role=role, status=MemberStatus.ACTIVE
    )


def caller_for(user: User) -> Caller:
    """An API client with a fresh personal token of `user`."""
    return Caller(access.create_token(actor=person_principal(user), name="test").text.reveal())


@dataclass
class Tenant:
    """Acme: alice is org_admin, bob and carol operators, vera a viewer; charlie is org_admin of another tenant."""

    organization: Organization
    project: Project
    dev: Environment
    staging: Environment
    prod: Environment
    other_organization: Organization
    other_project: Project
    other_environment: Environment
    people: dict[str, User]

    def caller(self, name: str) -> Caller:
        return caller_for(self.people[name])

    def principal(self, name: str) -> Principal:
        return person_principal(self.people[name])

    def scope(self, environment: Environment | None = None) -> Scope:
        where = environment or self.dev
        return Scope(where.project.organization, where.project, where)

    def path(self, environment: Environment | None = None) -> str:
        where = environment or self.dev
        project = where.project
        return f"/orgs/{project.organization_id}/projects/{project.pk}/environments/{where.pk}"


def make_tenant() -> Tenant:
    """Two tenants with a project each; Acme's has an environment of each posture."""
    acme = tenancy.create_organization(actor=SYSTEM_ACTOR, name="Acme")
    elsewhere = tenancy.create_organization(actor=SYSTEM_ACTOR, name="Elsewhere")
    people = {name: make_person(name) for name in ("alice", "bob", "carol", "vera", "charlie")}
    give_role(people["alice"], Role.ORG_ADMIN, acme)
    give_role(people["bob"], Role.OPERATOR, acme)
    give_role(people["carol"], Role.OPERATOR, acme)
    give_role(people["vera"], Role.VIEWER, acme)
    give_role(people["charlie"], Role.ORG_ADMIN, elsewhere)
    orders = tenancy.create_project(actor=SYSTEM_ACTOR, organization=acme, name="Orders")
    theirs = tenancy.create_project(actor=SYSTEM_ACTOR, organization=elsewhere, name="Orders")
    make = {
        posture: tenancy.create_environment(actor=SYSTEM_ACTOR, project=orders, name=posture, posture=posture)
        for posture in ("dev", "staging", "prod")
    }
    foreign = tenancy.create_environment(actor=SYSTEM_ACTOR, project=theirs, name="dev", posture="dev")
    return Tenant(acme, orders, make["dev"], make["staging"], make["prod"], elsewhere, theirs, foreign, people)


def attempts_of(rate: str) -> int:
    """The number of attempts in one window of a rate such as "60/m"."""
    return int(rate.partition("/")[0])


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """Run `calls` at the same moment, each in a thread with its own connection; results or exceptions, in order."""
    barrier = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def run(index: int, call: Callable[[], Any]) -> None:
        try:
            barrier.wait(timeout=30)
            results[index] = call()
        except BaseException as error:
            results[index] = error
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads), "a call did not end"
    return results


class Racer(threading.Thread):
    """A call in a thread with its own connection to PostgreSQL. `result` is what it returned or raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._pid = 0
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                self._pid = cursor.fetchone()[0]
            self.result = self._call()
        except BaseException as error:
            self.result = error
        finally:
            connection.close()

    def _waits(self) -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [self._pid])
            return bool(cursor.fetchone()[0])

    def until_it_waits(self) -> bool:
        """Block until the call waits for a lock, or has ended. Returns whether it waits."""
        deadline = time.monotonic() + 30
        while self.is_alive():
            if self._pid and self._waits():
                return True
            assert time.monotonic() < deadline, "it neither waits nor ends"
            time.sleep(0.01)
        return False

    def outcome(self) -> Any:
        """What the call returned or raised, once it has ended."""
        self.join(timeout=60)
        assert not self.is_alive(), "it does not end"
        return self.result


def trigger_operations(*kinds: type[TriggerOperation]) -> list[TriggerOperation]:
    """Every trigger of these kinds that a migration makes."""
    loader = MigrationLoader(None)
    return [op for m in loader.disk_migrations.values() for op in m.operations if isinstance(op, kinds)]


def run_due_chores() -> int:
    """Run every chore that is due and that no other process has leased; how many ran."""
    taken = [each for spec in registry.chores() for each in chores._take_due([spec])]
    for spec, token in taken:
        chores._run(spec, token)
    return len(taken)
