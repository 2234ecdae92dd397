"""What every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings
from django.db import connections

from apps.access.models import User
from apps.core import wake
from apps.core.triggers import AppendOnly
from tests.support import Caller, Tenant, caller_for, make_tenant, trigger_operations


def pytest_configure(config: pytest.Config) -> None:
    """Each of several test processes counts its throttles by itself: tests begin by forgetting what was counted."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker:
        mine = settings.CACHES["limits"]
        number = int(worker.removeprefix("gw"))
        if mine["LOCATION"].startswith(("redis://", "rediss://")):
            url, _, database = mine["LOCATION"].rpartition("/")
            mine["LOCATION"] = f"{url}/{(int(database) - number) % 16}"
        else:
            mine["LOCATION"] += f".{worker}"


@pytest.fixture(autouse=True, scope="session")
def _flush_past_append_only() -> Iterator[None]:
    """A flush deletes every row, which append-only tables refuse: their triggers stand aside for that one command."""
    from django.core.management.commands import flush

    original = flush.Command.handle

    def handle(self: flush.Command, **options: object) -> None:
        connection = connections[str(options["database"])]
        operations = trigger_operations(AppendOnly)
        with connection.cursor() as cursor:
            for op in operations:
                for statement in op.drop(connection.vendor):
                    cursor.execute(statement)
        try:
            original(self, **options)
        finally:
            with connection.cursor() as cursor:
                for op in operations:
                    for statement in op.create(connection.vendor):
                        cursor.execute(statement)

    flush.Command.handle = handle  # type: ignore[method-assign]
    yield
    flush.Command.handle = original  # type: ignore[method-assign]


@pytest.fixture(autouse=True, scope="session")
def _listener_ends_before_the_database(django_db_setup: None) -> Iterator[None]:
    """The wake listener's own connection would keep the test database from being dropped."""
    yield
    wake.close()


@pytest.fixture(autouse=True)
def _cheap_passwords(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> Tenant:
    """Acme and its neighbour; uses `transactional_db` when the test asked for it, else `db`."""
    request.getfixturevalue("transactional_db" if "transactional_db" in request.fixturenames else "db")
    return make_tenant()


@pytest.fixture
def alice(tenant: Tenant) -> User:
    return tenant.people["alice"]


@pytest.fixture
def bob(tenant: Tenant) -> User:
    return tenant.people["bob"]


@pytest.fixture
def vera(tenant: Tenant) -> User:
    return tenant.people["vera"]


@pytest.fixture
def charlie(tenant: Tenant) -> User:
    return tenant.people["charlie"]


@pytest.fixture
def client_for() -> Callable[[User], Caller]:
    """`client_for(user)` is an API client with a fresh personal token."""
    return caller_for
