"""What every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import time_machine
from django.apps import apps
from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.core.cache import caches
from django.core.signals import setting_changed
from django.db import connections, transaction
from django.test.client import ClientHandler

from apps.access.models import User
from apps.agents.heartbeat_cache import flush
from apps.core import clock, wake
from apps.core.triggers import AppendOnly
from apps.limits import overrides
from tests.answers import answers_are_as_declared
from tests.copies import tenants
from tests.soak import SOAKS
from tests.support import Caller, Tenant, caller_for, trigger_operations

__all__ = ["answers_are_as_declared"]

hypothesis.settings.register_profile(
    "suite",
    # no example fails for the machine being busy, and only a soak tries others than the time before
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=not any(variable in os.environ for _, variables in SOAKS.values() for variable in variables),
)
hypothesis.settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    """Each of several test processes counts its throttles by itself: tests begin by forgetting what was counted."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker:
        mine = settings.CACHES["limits"]
        number = int(worker.removeprefix("gw"))
        if mine["LOCATION"].startswith(("redis://", "rediss://")):
            url, _, database = mine["LOCATION"].rpartition("/")
            mine["LOCATION"] = f"{url}/{(int(database) - number) % 16}"
            # processes that its tests start count there too: no other test process empties it meanwhile
            os.environ["BYTEOR_CLOUD_REDIS_URL"] = mine["LOCATION"]
        else:
            mine["LOCATION"] += f".{worker}"


@pytest.fixture(autouse=True, scope="session")
def _flush_what_is_filled() -> Iterator[None]:
    """After a test without a transaction, delete rows from the tables that have any.

    Django's own flush truncates every table, which on PostgreSQL takes longer than most of these tests, and makes content
    types and permissions anew, which nothing here reads. Append-only tables refuse a DELETE: their triggers are dropped meanwhile.
    """
    from django.core.management.commands import flush

    original = flush.Command.handle
    triggers = trigger_operations(AppendOnly)

    def handle(self: flush.Command, *, database: str, **options: object) -> None:
        here = connections[database]
        tables = {model._meta.db_table for model in apps.get_models(include_auto_created=True) if model._meta.managed}
        filled = " UNION ALL ".join(
            f"SELECT '{table}' WHERE EXISTS (SELECT 1 FROM {table})" for table in sorted(tables)
        )
        with transaction.atomic(using=database), here.cursor() as cursor:
            cursor.execute(filled)
            names = [name for (name,) in cursor.fetchall()]
            dropped = [op for op in triggers if op.table in names]
            for statement in (s for op in dropped for s in op.drop(here.vendor)):
                cursor.execute(statement)
            for name in names:
                cursor.execute(f"DELETE FROM {name}")
            for statement in (s for op in dropped for s in op.create(here.vendor)):
                cursor.execute(statement)
        ContentType.objects.clear_cache()

    flush.Command.handle = handle  # type: ignore[method-assign]
    yield
    flush.Command.handle = original  # type: ignore[method-assign]


@pytest.fixture(autouse=True, scope="session")
def _listener_ends_before_the_database(django_db_setup: None) -> Iterator[None]:
    """The own connections of the listener and of the thread that writes heartbeats would keep the test database from being
    dropped."""
    yield
    flush._flusher.pending.clear()  # of tests whose rows are gone
    flush.end()
    wake.close()


MIDDLEWARE = ("_view_middleware", "_template_response_middleware", "_exception_middleware", "_middleware_chain")


@pytest.fixture(autouse=True, scope="session")
def _clients_share_their_middleware() -> Iterator[None]:
    """Django loads the middleware anew for each test client, which takes ten times as long as a request: once is enough, until
    a test changes a setting."""
    original = ClientHandler.load_middleware
    loaded: dict[str, Any] = {}

    def load_middleware(self: ClientHandler, is_async: bool = False) -> None:
        if not loaded:
            original(self, is_async)
            loaded.update({name: getattr(self, name) for name in MIDDLEWARE})
        vars(self).update(loaded)

    def forget(setting: str, **_: object) -> None:
        if setting != "PASSWORD_HASHERS":  # set for each test, below
            loaded.clear()

    ClientHandler.load_middleware = load_middleware  # type: ignore[method-assign]
    setting_changed.connect(forget)
    yield
    setting_changed.disconnect(forget)
    ClientHandler.load_middleware = original  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _content_types_are_looked_up_anew() -> None:
    """What the test before created was rolled back: an id that is remembered of it names no row any more."""
    ContentType.objects.clear_cache()


@pytest.fixture(autouse=True)
def _rate_overrides_are_read_after_a_test_forgets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at a moment that the test before decides: others would count a query more now and then."""
    monkeypatch.setattr(overrides, "_known", overrides.nothing_set(until=float("inf")))


@pytest.fixture(autouse=True)
def _cheap_passwords(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def one_window() -> Iterator[None]:
    """Nothing is counted yet, and the clock stands still: a real one might pass from one window into the next within a test."""
    caches["limits"].clear()
    with time_machine.travel(clock.now(), tick=False):
        yield


@pytest.fixture
def tenant(db: None) -> Tenant:
    """Acme and its neighbour. Also for tests with `transactional_db`, of which `db` is then another name."""
    return tenants.make()


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
