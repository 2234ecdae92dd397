"""PostgreSQL, Redis and Chromium for the tests. Servers are the suite's own, started from installed programs and stopped at the end.

A server that runs already is used only if a variable names it: BYTEOR_TEST_POSTGRES_URL, BYTEOR_TEST_REDIS_URL.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import redis

from apps.core.processes import die_with_parent

REQUIRED = frozenset(filter(None, os.environ.get("BYTEOR_TEST_REQUIRE", "").split(",")))
START_SECONDS = 60.0


class Missing(Exception):
    """A service that is not available here; the text is one line with the reason: `NAME: …`."""

    @property
    def required(self) -> bool:
        """Does BYTEOR_TEST_REQUIRE name it?"""
        return str(self).split(":", 1)[0] in REQUIRED


def without(missing: Missing) -> NoReturn:
    """Skip the test with the one line of the reason, or fail it where the service is required."""
    import pytest

    if missing.required:
        pytest.fail(str(missing))
    pytest.skip(str(missing))


PORTS = range(10_000, 65_000)
_reservations: list[socket.socket] = []


def free_port(host: str = "127.0.0.1") -> int:
    """A port of `host` that nothing listens on, for a server that is started later, and again after it ended.

    The kernel takes none of these ports for a connection, and no other test process is given it while this one lives.
    """
    lowest, highest = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    candidates = [port for port in PORTS if not lowest <= port <= highest]
    for _ in range(1000):
        port = random.SystemRandom().choice(candidates)
        reservation = socket.socket(socket.AF_UNIX)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                reservation.bind(f"\0byteor-test-port-{port}")  # abstract: it ends with this process
                probe.bind((host, port))
            except OSError:
                reservation.close()
                continue
        _reservations.append(reservation)
        return port
    raise RuntimeError("no port is free")


def _answers(url: str) -> bool:
    try:
        if url.startswith("postgres"):
            psycopg.connect(url, connect_timeout=5).close()
        else:
            with redis.Redis.from_url(url, socket_connect_timeout=5) as client:
                client.ping()
    except (psycopg.Error, redis.RedisError):
        return False
    return True


class _Server:
    """One server program in a process group of its own: Ctrl-C ends the tests first, and `stop` ends the server."""

    url: str
    _process: subprocess.Popen[bytes]

    def _launch(self, *command: str | Path, **options: Any) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,  # however the test run ends
            **options,
        )
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.url):
            if time.monotonic() > deadline or self._process.poll() is not None:
                self._process.kill()
                self._process.wait()
                raise RuntimeError(f"{command[0]} did not start")
            time.sleep(0.05)

    def _end(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class PostgresServer(_Server):
    """A PostgreSQL server with a new cluster in a temporary folder. Raises Missing if none is installed.

    Unless it is `durable`, nothing is synchronized to disk: a crash of the machine loses data, one of the server does not.
    """

    STOPS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
    FAST = ("fsync=off", "full_page_writes=off", "max_wal_size=4GB", "jit=off")

    def __init__(self, *, durable: bool = False, max_connections: int = 300) -> None:
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: float(Path(path).parent.name))
        if not found:
            raise Missing("postgres: no server is installed (/usr/lib/postgresql/*/bin)")
        self._programs = Path(found[-1])
        self._home = Path(tempfile.mkdtemp(prefix="byteor-pg-", dir="/tmp"))  # the path of a Unix socket is short
        self._settings = (*(() if durable else self.FAST), f"max_connections={max_connections}")
        self._user: dict[str, Any] = {}
        try:
            if os.geteuid() == 0:
                user = pwd.getpwnam("postgres")
                os.chown(self._home, user.pw_uid, user.pw_gid)
                self._user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            self.port = free_port()
            self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
            subprocess.run(
                [self._programs / "initdb", "-D", self._home / "data", "-U", "postgres", "-A", "trust", "--no-sync"],
                check=True,
                capture_output=True,
                cwd=self._home,
                **self._user,
            )
            self.start()
        except BaseException:
            shutil.rmtree(self._home, ignore_errors=True)
            raise

    def start(self) -> None:
        """Start it on the same data and port; it answers when this returns."""
        settings = [part for setting in self._settings for part in ("-c", setting)]
        where = ["-D", self._home / "data", "-h", "127.0.0.1", "-p", str(self.port), "-k", self._home]
        self._launch(self._programs / "postgres", *where, *settings, cwd=self._home, **self._user)

    def stop(self, mode: str = "fast") -> None:
        """End it as `pg_ctl stop -m` does: `smart`, `fast` or `immediate`."""
        self._end(self.STOPS[mode])

    def close(self) -> None:
        """End it and remove its data."""
        self.stop("immediate")
        shutil.rmtree(self._home, ignore_errors=True)


class RedisServer(_Server):
    """A Redis server that keeps nothing on disk. Raises Missing if none is installed."""

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise Missing("redis: no server is installed (redis-server)")
        self._program, self.port = program, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Start it, empty, on the same port; it answers when this returns."""
        options = ("--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no")
        self._launch(self._program, *options)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    close = stop


@contextlib.contextmanager
def _service(name: str, make: Callable[[], PostgresServer | RedisServer]) -> Iterator[str]:
    """The URL in the variable of this name, else that of a server made by `make`."""
    variable = f"BYTEOR_TEST_{name.upper()}_URL"
    given = os.environ.get(variable, "")
    if given:
        if not _answers(given):
            raise Missing(f"{name}: nothing answers at {variable}")
        yield given
        return
    server = make()
    try:
        yield server.url
    finally:
        server.close()


def postgres(*, durable: bool = False) -> contextlib.AbstractContextManager[str]:
    """A PostgreSQL URL whose user may make databases. Raises Missing."""
    return _service("postgres", lambda: PostgresServer(durable=durable))


def redis_server() -> contextlib.AbstractContextManager[str]:
    """A Redis URL. Raises Missing."""
    return _service("redis", RedisServer)


def chromium() -> str:
    """The path of an installed Chromium. Raises Missing."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path:
            return path
    raise Missing("browser: no Chromium is installed")
