"""The worker process: a watchdog over two children, the django-q2 cluster and the process of the chores, and a health port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import structlog
from django.conf import settings
from django.db import Error, connection

from apps.core import clock, metrics, readiness, wake
from apps.core.db import reason
from apps.core.ids import new_id
from apps.core.processes import die_with_parent, on_stop_signal
from apps.core.readiness import NotReady
from apps.jobs import process_health
from apps.jobs.chores import ChoreRunner
from apps.jobs.services import give_up_leases

log = structlog.get_logger(__name__)

STARTUP_SECONDS = 30.0
STOP_SECONDS = 8.0
SILENT_SECONDS = 20.0
UNREAPED_SECONDS = 3.0
LOOK_EVERY_SECONDS = 0.5
TICKS_ENV = "BYTEOR_TICKS_FD"


class _Health(BaseHTTPRequestHandler):
    """`/healthz` answers while the process lives, `/readyz` with its checks, `/metrics` with the same gauges as the web server."""

    timeout = 10

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer(200, {"status": "ok"})
        elif self.path == "/readyz":
            found = readiness.report(readiness.WORKER)
            self._answer(200 if found.can_serve else 503, found.body)
        elif self.path == "/metrics":
            self._answer_metrics()
        else:
            self._answer(404, {"status": "not_found"})

    def _answer_metrics(self) -> None:
        if not metrics.is_allowed(self.headers.get("Authorization", "")):
            self._answer(401, {"status": "token_needed"})
            return
        try:
            data = metrics.exposition()
        except Error as error:
            log.error("can't count for a scrape", reason=reason(error))
            self._answer(503, {"status": "database_unavailable"})
            return
        finally:
            connection.close()
        self._send(200, data, metrics.CONTENT_TYPE)

    def _answer(self, status: int, body: dict[str, object]) -> None:
        self._send(status, json.dumps(body).encode(), "application/json")

    def _send(self, status: int, data: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Log no health checks."""


class _Child:
    """One supervised process group. Started again whenever it ended; more and more slowly when it ends at once."""

    def __init__(self, name: str, flag: str) -> None:
        self.name, self._flag = name, flag
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self._failures = 0
        self._not_before = 0.0

    def start(self, environment: dict[str, str], pass_fds: tuple[int, ...] = ()) -> bool:
        """Start it in a session of its own, unless it is too soon; whether it was started."""
        if time.monotonic() < self._not_before:
            return False
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, str(settings.BASE_DIR / "manage.py"), "run_worker", self._flag],
            env={**os.environ, **environment},
            start_new_session=True,
            pass_fds=pass_fds,
        )
        log.info(f"worker {self.name} started", pid=self.process.pid)
        return True

    def ended(self) -> bool:
        """Whether it is not running. The first call after its end logs the exit code."""
        if self.process is None:
            return True
        code = self.process.poll()
        if code is None:
            return False
        log.error(f"worker {self.name} ended by itself", code=code, pid=self.process.pid)
        self.forget()
        return True

    def forget(self) -> None:
        """End every process of its group at once. How soon the next may start depends on how long this one lived."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        lived = time.monotonic() - self.started
        self._failures = self._failures + 1 if lived < STARTUP_SECONDS else 0
        # the first two are replaced at once
        self._not_before = time.monotonic() + (0 if self._failures < 3 else min(30.0, 2.0 ** (self._failures - 3)))

    def terminate(self) -> None:
        """Send it SIGTERM."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def end(self, deadline: float) -> None:
        """Wait until `deadline` for it to end, then end it."""
        if self.process is None:
            return
        try:
            self.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning(f"worker {self.name} did not stop in time")
        self.forget()


def _unreaped(pid: int) -> bool:
    """Whether `pid` has a child that is dead and that it has not looked at (Linux; elsewhere the heartbeats must do)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return any(Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z" for child in children)
    except (OSError, IndexError):
        return False


class Watchdog:
    """Keeps cluster and chores running: starts each, kills its whole process group when its heartbeats stop, starts it again."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.cluster = _Child("cluster", "--cluster")
        self.chores = _Child("chores", "--chores")
        self.cluster_id: uuid.UUID = new_id()
        self._lost: list[uuid.UUID] = []
        self._reachable_since = time.monotonic()
        self._unreaped_since: float | None = None
        self._ticks: int | None = None
        self._ticked = 0.0

    def start_cluster(self) -> None:
        """Start a cluster under a fresh id."""
        fresh = new_id()
        if self.cluster.start({process_health.CLUSTER_ENV: str(fresh)}):
            self.cluster_id, self._unreaped_since = fresh, None

    def start_chores(self) -> None:
        """Start the process of the chores, with a pipe that it ticks on."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        if self.chores.start({TICKS_ENV: str(write)}, (write,)):
            if self._ticks is not None:
                os.close(self._ticks)
            self._ticks, self._ticked = read, time.monotonic()
        else:
            os.close(read)
        os.close(write)

    def check(self) -> None:
        """Check both, and end the leases of clusters that died."""
        self._check_cluster()
        self._check_chores()
        while self._lost:
            try:
                give_up_leases(cluster=self._lost[0])
            except Error:
                connection.close()
                return
            self._lost.pop(0)

    def _replace_cluster(self) -> None:
        self._lost.append(self.cluster_id)
        self.cluster.forget()
        self.start_cluster()

    def _check_cluster(self) -> None:
        if self.cluster.process is None:
            self.start_cluster()
        elif self.cluster.ended():
            self._replace_cluster()
        elif self._has_unreaped(self.cluster.process.pid):
            log.error("worker cluster does not look after its dead; replacing it")
            self._replace_cluster()
        elif self._silent():
            log.error("worker cluster sent no heartbeat; replacing it")
            self._replace_cluster()

    def _has_unreaped(self, pid: int) -> bool:
        if not _unreaped(pid):
            self._unreaped_since = None
            return False
        now = time.monotonic()
        self._unreaped_since = self._unreaped_since or now
        return now - self._unreaped_since > UNREAPED_SECONDS

    def _silent(self) -> bool:
        now = time.monotonic()
        try:
            last = process_health.last_beat(self.cluster_id)
        except Error as error:
            log.warning("the watchdog can't read the heartbeats", reason=reason(error))
            connection.close()
            self._reachable_since = time.monotonic()
            return False
        # the silence of a cluster counts from when it could have beaten first
        if now - max(self._reachable_since, self.cluster.started) < max(STARTUP_SECONDS, process_health.STALE_SECONDS):
            return False
        return last is None or (clock.now() - last).total_seconds() > process_health.STALE_SECONDS

    def check_own_cluster(self) -> None:
        """Readiness: the cluster of this worker sent a heartbeat in the last 20 s. Raises NotReady."""
        last = process_health.last_beat(self.cluster_id)
        if last is None:
            raise NotReady("its cluster has sent no heartbeat yet")
        age = (clock.now() - last).total_seconds()
        if age > process_health.STALE_SECONDS:
            raise NotReady(f"the last heartbeat of its cluster is {int(age)} s old")

    def _check_chores(self) -> None:
        if self.chores.process is None or self.chores.ended():
            self.start_chores()
            return
        if self._ticks is not None:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._ticks, 4096):
                    self._ticked = time.monotonic()
        if time.monotonic() - max(self._ticked, self.chores.started + STARTUP_SECONDS) > SILENT_SECONDS:
            log.error("worker chores sent no heartbeat; replacing them")
            self.chores.forget()
            self.start_chores()

    def stop(self) -> None:
        """Let both finish what they run for a few seconds, then end them."""
        deadline = time.monotonic() + STOP_SECONDS
        for child in (self.cluster, self.chores):
            child.terminate()
        for child in (self.cluster, self.chores):
            child.end(deadline)

    def run(self, bind: tuple[str, int] | None) -> None:
        """Until SIGTERM or SIGINT: cluster, chores and health port."""
        on_stop_signal(self.stopping.set)
        server = ThreadingHTTPServer(bind, _Health) if bind is not None else None
        process_health.set_process_kind("worker")
        readiness.register_check("cluster", self.check_own_cluster, needed_by=(readiness.WORKER,))
        readiness.watch()
        if server is not None:
            threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
        self.start_cluster()
        self.start_chores()
        try:
            while not self.stopping.wait(LOOK_EVERY_SECONDS):
                self.check()
        finally:
            if server is not None:
                server.shutdown()
            self.stop()


def run_chores() -> None:
    """The process of the chores until SIGTERM: then what runs may end within a few seconds. Dies with its parent."""
    die_with_parent()
    stop = threading.Event()
    on_stop_signal(stop.set, numbers=[signal.SIGTERM])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ticks = os.environ.get(TICKS_ENV)

    def tick() -> None:
        if ticks is not None:
            os.write(int(ticks), b".")

    ChoreRunner(stop, tick).run()
    wake.stop_all()
    connection.close()
