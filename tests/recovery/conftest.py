"""Plants, kept warm: one on SQLite, one on a PostgreSQL and a Redis of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recovery.plant import Plant, plant
from tests.services import Missing, PostgresServer, RedisServer, without


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    try:
        server = PostgresServer(max_connections=40)
    except Missing as missing:
        without(missing)
    yield server
    server.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    try:
        server = RedisServer()
    except Missing as missing:
        without(missing)
    yield server
    server.close()


@pytest.fixture(scope="session")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with plant(Path(tmp_path_factory.mktemp("sqlite"))) as made:
        yield made


@pytest.fixture(scope="session")
def on_postgres(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, redis_server: RedisServer
) -> Iterator[Plant]:
    home = Path(tmp_path_factory.mktemp("postgres"))
    urls = {"BYTEOR_CLOUD_DATABASE_URL": postgres_server.url, "BYTEOR_CLOUD_REDIS_URL": redis_server.url}
    with plant(home, **urls) as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def running(request: pytest.FixtureRequest) -> Plant:
    """A plant on each database."""
    made: Plant = request.getfixturevalue(f"on_{request.param}")
    return made
