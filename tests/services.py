"""PostgreSQL, Redis and Chromium for the tests: found running, else started if installed, else reported as missing."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

REQUIRED = frozenset(filter(None, os.environ.get("BYTEOR_TEST_REQUIRE", "").split(",")))


class Missing(Exception):
    """A service that can't be had here; the text is the one line that says why: `NAME: …`."""

    @property
    def required(self) -> bool:
        """Does BYTEOR_TEST_REQUIRE name it?"""
        return str(self).split(":", 1)[0] in REQUIRED


def without(missing: Missing) -> NoReturn:
    """Skip the test with the one line that says why, or fail it where the service is required."""
    import pytest

    if missing.required:
        pytest.fail(str(missing))
    pytest.skip(str(missing))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    import psycopg

    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.Error:
        return False
    return True


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL URL whose user may make databases. Raises Missing."""
    given = os.environ.get("BYTEOR_TEST_POSTGRES_URL", "")
    for url in filter(None, (given, "postgresql://postgres@127.0.0.1:5432/postgres")):
        if _answers(url):
            yield url
            return
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if not found:
        raise Missing("postgres: no server answers on 127.0.0.1:5432 and none is installed")
    home = Path(tempfile.mkdtemp(prefix="byteor-pg-"))
    port, programs = _free_port(), Path(found[-1])
    demote: dict[str, object] = {}
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(home, user.pw_uid, user.pw_gid)
        demote = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    common = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": home, **demote}
    data = str(home / "data")
    subprocess.run([programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust"], check=True, **common)  # type: ignore[call-overload]
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", str(home), "-F"],
        **common,  # type: ignore[arg-type]
    )
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    try:
        deadline = time.monotonic() + 30
        while not _answers(url):
            if time.monotonic() > deadline or server.poll() is not None:
                raise Missing("postgres: the installed server did not start")
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=20)
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """A Redis URL. Raises Missing."""
    import redis

    url = os.environ.get("BYTEOR_TEST_REDIS_URL", "redis://127.0.0.1:6379/15")
    with contextlib.suppress(redis.RedisError):
        redis.Redis.from_url(url, socket_connect_timeout=1).ping()
        yield url
        return
    program = shutil.which("redis-server")
    if program is None:
        raise Missing("redis: no server answers on 127.0.0.1:6379 and none is installed")
    port = _free_port()
    server = subprocess.Popen(
        [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"redis://127.0.0.1:{port}/0"
        deadline = time.monotonic() + 10
        while True:
            try:
                redis.Redis.from_url(url).ping()
                break
            except redis.RedisError:
                if time.monotonic() > deadline:
                    raise Missing("redis: the installed server did not start") from None
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=10)


def chromium() -> str:
    """The path of an installed Chromium. Raises Missing."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path:
            return path
    raise Missing("browser: no Chromium is installed")
