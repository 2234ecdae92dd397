"""Commands report an unavailable or not migrated database, or a pooler, in one line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.core import signing
from django.test import override_settings

from byteor import config
from tests.flows.world import ROOT, free_port
from tests.services import Missing, postgres, without

pytestmark = [pytest.mark.alone]


def manage(home: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    """Exit code and standard error of a command in an empty place."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BYTEOR_CLOUD_", "DJANGO_"))}
    environment = {**kept, "BYTEOR_CLOUD_DATA_DIR": str(home), **{f"BYTEOR_CLOUD_{k}": v for k, v in settings.items()}}
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr.decode()


@pytest.fixture
def server() -> Iterator[str]:
    try:
        with postgres() as url:
            yield url
    except Missing as missing:
        without(missing)


BOOTSTRAP = ("bootstrap", "--org", "Acme", "--admin", "a@example.com")


def test_not_migrated(tmp_path: Path) -> None:
    assert manage(tmp_path, *BOOTSTRAP) == (2, "byteor: the database is not migrated: run manage.py migrate\n")


def test_not_there(tmp_path: Path, server: str) -> None:
    code, output = manage(
        tmp_path,
        "up",
        DATABASE_URL=f"{server.rsplit('/', 1)[0]}/nobody_made_this",
        API_BIND_ADDR=f"127.0.0.1:{free_port()}",
        WORKER_BIND_ADDR=f"127.0.0.1:{free_port()}",
    )
    assert code == 2, output
    lines = output.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("byteor: the database is unavailable: ")
    assert "nobody_made_this" in lines[0]


@contextlib.contextmanager
def transaction_pooler(url: str) -> Iterator[str]:
    """A pooler that gives every statement outside of a transaction, and every transaction, whichever server connection is
    free: one here, so that two clients share it."""
    parts = urlsplit(url)
    yield from _Pooler(parts.hostname or "127.0.0.1", parts.port or 5432, parts).run()


class _Pooler:
    """Speaks just enough of the protocol: relays each client's log-in to the server, then keeps one server connection for
    all, and lends it from a query to the ReadyForQuery with status idle."""

    def __init__(self, host: str, port: int, parts: object) -> None:
        self._host, self._port, self._parts = host, port, parts
        self._lock = asyncio.Lock()
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._greeting = b""
        self._writers: list[asyncio.StreamWriter] = []

    async def _message(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readexactly(5)
        return head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            while True:
                size = await reader.readexactly(4)
                start = size + await reader.readexactly(int.from_bytes(size, "big") - 4)
                if int.from_bytes(start[4:8], "big") in (80877103, 80877104):
                    writer.write(b"N")
                    continue
                break
            async with self._lock:
                if self._server is None:
                    self._server = await asyncio.open_connection(self._host, self._port)
                    self._writers.append(self._server[1])
                    self._server[1].write(start)
                    while not self._greeting.endswith(b"Z\x00\x00\x00\x05I"):
                        self._greeting += await self._message(self._server[0])
            writer.write(self._greeting)
            while True:
                message = await self._message(reader)
                async with self._lock:
                    await self._lend(message, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _lend(self, message: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._server is not None
        from_server, to_server = self._server
        while True:
            if message[:1] == b"X":
                raise ConnectionError
            to_server.write(message)
            if message[:1] in (b"Q", b"S"):
                while True:
                    answer = await self._message(from_server)
                    writer.write(answer)
                    if answer[:1] == b"Z":
                        break
                if answer[5:6] == b"I":
                    return
            message = await self._message(reader)

    def run(self) -> Iterator[str]:
        loop = asyncio.new_event_loop()
        started = threading.Event()
        where: list[int] = []

        async def serve() -> None:
            server = await asyncio.start_server(self._client, "127.0.0.1", 0)
            where.append(server.sockets[0].getsockname()[1])
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                server.close()
                for writer in self._writers:
                    writer.close()
                    with contextlib.suppress(ConnectionError):
                        await writer.wait_closed()

        task = loop.create_task(serve())

        def work() -> None:
            with_suppressed(loop, task)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert started.wait(30)
        parts = self._parts
        user = getattr(parts, "username", None) or "postgres"
        try:
            yield f"postgresql://{user}@127.0.0.1:{where[0]}{getattr(parts, 'path', '/postgres')}"
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join(10)


def with_suppressed(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    """Run until cancelled."""
    try:
        loop.run_until_complete(task)
    except asyncio.CancelledError:
        pass
    finally:
        for left in asyncio.all_tasks(loop):
            left.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def test_a_transaction_pooler_is_refused_at_the_start(tmp_path: Path, server: str) -> None:
    with transaction_pooler(server) as pooled:
        code, output = manage(tmp_path, "run_worker", DATABASE_URL=pooled)
    assert code == 2, output
    assert output.splitlines()[-1].startswith("byteor: the database is behind a pooler in transaction mode")


def test_settings_that_go_with_a_pooler(tmp_path: Path) -> None:
    show = (
        "shell",
        "--no-imports",
        "-c",
        "import sys; from django.conf import settings as s; d = s.DATABASES['default']; "
        "o = d['OPTIONS']; "
        "sys.stderr.write(str((o.get('server_side_binding'), o['prepare_threshold'], d.get('DISABLE_SERVER_SIDE_CURSORS'))))",
    )
    given = {"DATABASE_URL": "postgresql://pooler/x"}
    assert manage(tmp_path, *show, **given) == (0, "(True, 2, None)")
    given["DATABASE_DIRECT_URL"] = "postgresql://server/x"
    assert manage(tmp_path, *show, **given) == (0, "(None, None, True)")
    code, output = manage(tmp_path, *show, **given, DATABASE_SCHEMA="cloud")
    assert (code, "a pooler does not keep" in output) == (2, True)


def test_a_ring_of_secret_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYTEOR_CLOUD_DATA_DIR", str(tmp_path))
    old, new = "o" * 50, "n" * 50

    def turned(ring: str) -> override_settings:
        monkeypatch.setenv("BYTEOR_CLOUD_SECRET_KEY", ring)
        first, *others = config.load().secret_keys
        return override_settings(SECRET_KEY=first, SECRET_KEY_FALLBACKS=others)

    with turned(f"{old},{new}"):
        signed = signing.dumps("x")
    for ring in (old, f"{new},{old}"):
        with turned(ring):
            assert signing.loads(signed) == "x"
    with turned(new), pytest.raises(signing.BadSignature):
        signing.loads(signed)
    for wrong in (f"{old},", f"{old},{old}"):
        with pytest.raises(config.BadSetting):
            turned(wrong)
    monkeypatch.setenv("BYTEOR_CLOUD_SECRET_KEY", f"{old},short")
    with pytest.raises(config.BadSetting, match="each part"):
        config._secret_keys(f"{old},short", hosted=True)
