"""What the control plane depends on is stopped, killed, overrun and filled: it reports that, and recovers by itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.flows.world import until
from tests.recovery.plant import Failed, Plant, plant
from tests.services import PostgresServer, RedisServer

pytestmark = [pytest.mark.alone, pytest.mark.faults, pytest.mark.timeout(480)]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_postgres_restarts_under_load(on_postgres: Plant, postgres_server: PostgresServer, mode: str) -> None:
    here = on_postgres
    until(here.well, 60)
    queued = here.hand("queue", organization="Acme", count=300)
    postgres_server.stop(mode)
    try:
        until(lambda: here.wrong("database"), 30)
        status, body = here.api.call("GET", "/me")
        assert (status, body["code"]) == (503, "database_unavailable")
        until(lambda: here.ready(here.worker_url)[0] == 503, 30)
        until(lambda: here.logged("the queue can't be read"), 30)
    finally:
        postgres_server.start()
    queued += here.hand.tries("queue", organization="Elsewhere", count=5)
    here.all_once(queued, 90)
    until(here.well, 60)
    assert here.api.get("/me")["email"] == "a@example.com"
    assert here.logged('"code": "database_unavailable"')


def _all_connections(server: PostgresServer) -> list[psycopg.Connection[Any]]:
    """Every connection that the server still gives."""
    crowd: list[psycopg.Connection[Any]] = []
    with contextlib.suppress(psycopg.OperationalError):
        while True:
            crowd.append(psycopg.connect(server.url, autocommit=True, application_name="crowd"))
    return crowd


def test_postgres_has_no_connection_left(on_postgres: Plant, postgres_server: PostgresServer) -> None:
    here = on_postgres
    until(here.well, 60)
    crowd = _all_connections(postgres_server)

    def pressed() -> bool:
        """Every connection but the crowd's is ended, and the crowd takes what that frees before any other client."""
        crowd[0].execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND application_name <> 'crowd'"
        )
        crowd.extend(_all_connections(postgres_server))
        status, body = here.api.call("GET", "/me")
        return status == 503 and body["code"] == "database_unavailable" and bool(here.wrong("database"))

    try:
        queued = here.hand("queue", organization="Acme", count=3)
        until(pressed, 40)
        until(lambda: here.logged("too many clients"), 30)
    finally:
        for connection in crowd:
            connection.close()
    queued += here.hand.tries("queue", organization="Acme", count=5)
    here.all_once(queued)
    here.whole()
    until(here.well, 60)


def _sign_in(here: Plant) -> int:
    """The status that the sign-in form answers a wrong password with, by a browser's steps."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with opener.open(f"{here.url}/admin/login/", timeout=20) as page:
        field = page.read().decode().split('name="csrfmiddlewaretoken" value="', 1)[1].split('"', 1)[0]
    form = urllib.parse.urlencode({"csrfmiddlewaretoken": field, "username": "a@example.com", "password": "wrong"})
    request = urllib.request.Request(f"{here.url}/admin/login/", form.encode(), {"Referer": here.url})
    try:
        with opener.open(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_redis_stops_and_comes_back(on_postgres: Plant, redis_server: RedisServer) -> None:
    """For a few seconds here; the rule is the same for thirty: nothing but throttles is in Redis, and no request waits for it."""
    here = on_postgres
    until(here.well, 60)
    assert _sign_in(here) == 200
    redis_server.stop()
    try:
        until(lambda: here.wrong("cache"), 30)
        status, body = here.ready()
        assert (status, body["status"]) == (200, "degraded")
        assert "cache" in body["degraded"]
        assert here.wrong("database") == ""
        assert here.api.get("/me")["email"] == "a@example.com"
        here.api.post(f"/orgs/{here.org_id}/projects", {"name": f"Made without {redis_server.port}"})
        here.all_once(here.hand("queue", organization="Acme", count=3))
        assert _sign_in(here) == 503
        here.api.token, right = "byo_pat_wrong", here.api.token
        assert here.api.call("GET", "/me")[0] == 401
        here.api.token = right
        assert here.logged("rate limit cache unavailable")
    finally:
        redis_server.start()
    until(here.well, 60)
    assert _sign_in(here) == 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("disk full: a small file system can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def _fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as out:
        for size in (65536, 4096, 1):
            try:
                while True:
                    out.write(b"\0" * size)
            except OSError:
                continue
    return filler


def test_the_disk_of_the_data_directory_fills_up(small_disk: Path, tmp_path: Path) -> None:
    """SQLite and files on one disk, as on a single machine."""
    with plant(tmp_path, BYTEOR_CLOUD_DATA_DIR=str(small_disk / "data")) as here:
        path = f"/orgs/{here.org_id}/projects"
        here.hand("blob", size=4096)
        filler = _fill(small_disk)
        answers: list[tuple[int, dict[str, str]]] = []
        while len(answers) < 400 and len([1 for status, _ in answers if status != 201]) < 3:
            name = f"p{len(answers)}"
            answers.append(here.api.call("POST", path, {"name": name, "slug": name}))
        refused = [(status, body) for status, body in answers if status != 201]
        assert refused, "four hundred projects found room on a full disk"
        assert {(status, body["code"]) for status, body in refused} == {(507, "storage_full")}
        until(lambda: here.wrong("database") == "the disk of the data directory is full", 30)
        until(lambda: "No space left on device" in here.wrong("storage"), 30)
        with pytest.raises(Failed, match=r"No space left|full"):
            here.hand("blob", size=1 << 20)
        assert here.hand("unkept_blobs") == 0
        assert here.api.get("/me")["email"] == "a@example.com"
        assert here.logged('"code": "storage_full"')
        kept = {p["slug"] for p in _every(here, path)}
        assert kept == {body["slug"] for status, body in answers if status == 201}
        filler.unlink()
        until(here.well, 60)
        here.api.post(path, {"name": "Room again"})
        here.hand("blob", size=1 << 20)
        here.all_once(here.hand.tries("queue", organization="Acme", count=3))
        assert here.hand("unkept_blobs") == 0


def _every(here: Plant, path: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    where = f"{path}?limit=100"
    while where:
        page = here.api.get(where)
        rows += page["results"]
        where = f"{path}?{page['next'].split('?', 1)[1]}" if page.get("next") else ""
    return rows
