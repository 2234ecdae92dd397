"""The worker: a django-q2 cluster in a session of its own, a watchdog over it, the chores, and a health port."""

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
from types import FrameType

import structlog
from django.conf import settings
from django.db import DatabaseError, connection

from apps.core import clock, wake
from apps.core.ids import new_id
from apps.core.processes import die_with_parent
from apps.core.readiness import run_checks
from apps.jobs import liveness
from apps.jobs.chores import run_chores_until

log = structlog.get_logger(__name__)

STARTUP_SECONDS = 30.0
STOP_SECONDS = 8.0


def run_cluster() -> None:
    """The child: a django-q2 cluster until SIGTERM. Every process it forks dies with the one that forked it."""
    from django_q.cluster import Cluster

    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)
    connection.close()
    cluster = Cluster()
    cluster.start()
    while cluster.sentinel is not None and cluster.sentinel.is_alive():
        time.sleep(0.2)


class _Health(BaseHTTPRequestHandler):
    """`/healthz` says alive, `/readyz` what is wrong."""

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer(200, {"status": "ok"})
        elif self.path == "/readyz":
            try:
                checks = run_checks()
            finally:
                connection.close()
            bad = any(checks.values())
            self._answer(503 if bad else 200, {"status": "not_ready" if bad else "ready", "checks": checks})
        else:
            self._answer(404, {"status": "not_found"})

    def _answer(self, status: int, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Health checks are not news."""


class Watchdog:
    """Keeps one cluster alive: starts it, looks at its heartbeats, kills the whole group when they stop, starts anew."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.child: subprocess.Popen[bytes] | None = None
        self.cluster_id: uuid.UUID = new_id()
        self.started = 0.0

    def start(self) -> None:
        """Start a cluster under a fresh id, in a session of its own."""
        self.cluster_id = new_id()
        self.started = time.monotonic()
        environment = {**os.environ, liveness.CLUSTER_ENV: str(self.cluster_id)}
        self.child = subprocess.Popen(
            [sys.executable, str(settings.BASE_DIR / "manage.py"), "run_worker", "--cluster"],
            env=environment,
            start_new_session=True,
        )
        log.info("worker cluster started", pid=self.child.pid, cluster=str(self.cluster_id))

    def kill(self) -> None:
        """End every process of the cluster's group at once."""
        if self.child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()

    def check(self) -> None:
        """One look: restart a cluster that ended or gave no sign of life for 30 seconds."""
        if self.child is None or self.child.poll() is not None:
            log.error("worker cluster ended by itself", code=self.child.returncode if self.child else None)
            self.kill()
            self.start()
            return
        if time.monotonic() - self.started < STARTUP_SECONDS:
            return
        try:
            last = liveness.last_beat(self.cluster_id)
        except DatabaseError:
            connection.close()
            return
        if last is None or (clock.now() - last).total_seconds() > liveness.STALE_SECONDS:
            log.error("worker cluster gave no sign of life; restarting it", last=str(last))
            self.kill()
            self.start()

    def stop(self) -> None:
        """Let the cluster finish what it runs for a few seconds, then end it."""
        if self.child is None:
            return
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("worker cluster did not stop in time")
        self.kill()

    def run(self, bind: tuple[str, int] | None) -> None:
        """Until SIGTERM or SIGINT: cluster, chores and health port."""

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.stopping.set()

        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)
        server = ThreadingHTTPServer(bind, _Health) if bind is not None else None
        if server is not None:
            threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
        chores = threading.Thread(target=run_chores_until, args=(self.stopping,), name="chores", daemon=True)
        self.start()
        chores.start()
        try:
            while not self.stopping.wait(1.0):
                self.check()
        finally:
            wake.stop_all()
            if server is not None:
                server.shutdown()
            self.stop()
            chores.join(timeout=1)
