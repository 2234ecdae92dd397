"""`manage.py up [--demo]`: runs the whole product on one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connection

from apps.console.setup import demo as demonstration
from apps.core.processes import die_with_parent, on_stop_signal
from byteor.logs import BRIEF
from byteor.server.run import require_free

STOP_SECONDS = 9.0
START_SECONDS = 60.0
SHORT_LIFE_SECONDS = 3.0
SEED_SECONDS = 30.0


class Command(BaseCommand):
    """Migrate, start web and worker, print the URL, and stop everything on SIGINT or SIGTERM."""

    help = "Run the web server and the worker; with --demo also a demo tenant."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--demo", action="store_true", help="a demo tenant with real agents (local and development)"
        )
        parser.add_argument("--verbose", action="store_true", help="show every request and all of its fields")

    def handle(self, *args: Any, **options: Any) -> None:
        demo = bool(options["demo"]) or settings.BYTEOR_RUN_DEMO_AGENTS
        if demo and settings.BYTEOR_PROFILE not in ("local", "development"):
            self._refuse("--demo is for the local and development profiles")
        for what, (host, port) in (("web", settings.BYTEOR_API_BIND), ("worker", settings.BYTEOR_WORKER_BIND)):
            self._require_free(what, host, port)
        if not options["verbose"]:
            os.environ[BRIEF] = "1"
        call_command("migrate", verbosity=0)
        world = demonstration.prepare() if demo else None
        connection.close()
        self._run(world)

    def _refuse(self, line: str) -> None:
        self.stderr.write(f"byteor: {line}")
        sys.exit(2)

    def _require_free(self, what: str, host: str, port: int) -> None:
        try:
            require_free(host, port)
        except OSError as error:
            self._refuse(f"the {what} can't listen on {host}:{port}: {error.strerror}")

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=settings.BASE_DIR,
            preexec_fn=die_with_parent,
        )

    def _run(self, world: demonstration.Demo | None) -> None:
        stopping = threading.Event()
        on_stop_signal(stopping.set)
        manage = str(settings.BASE_DIR / "manage.py")
        commands: list[tuple[str, ...]] = []
        if settings.BYTEOR_MODE in ("combined", "api"):
            commands.append((manage, "run_web"))
        if settings.BYTEOR_MODE in ("combined", "worker"):
            commands.append((manage, "run_worker"))
        children: list[subprocess.Popen[bytes]] = []
        fleet = demonstration.Fleet(world) if world else None
        try:
            children += [self._start(*command) for command in commands]
            started = [time.monotonic()] * len(children)
            if not self._wait_for_web(children, stopping):
                return
            seeding = self._start_fleet(fleet) if fleet is not None else None
            ready_by = time.monotonic() + SEED_SECONDS
            greeted = False
            while not stopping.wait(0.5):
                # printed after the children's startup output, so that the URL is in the last lines
                if not greeted and (seeding is None or not seeding.is_alive() or time.monotonic() > ready_by):
                    self._greet(world)
                    greeted = True
                for index, child in enumerate(children):
                    if child.poll() is None:
                        continue
                    self.stderr.write(f"byteor: a child ended by itself with code {child.returncode}")
                    if time.monotonic() - started[index] < SHORT_LIFE_SECONDS:
                        sys.exit(1)
                    self.stderr.write("byteor: it is started again")
                    children[index], started[index] = self._start(*commands[index]), time.monotonic()
        finally:
            self._end(children, fleet)

    def _start_fleet(self, fleet: demonstration.Fleet) -> threading.Thread:
        """Start the agents, and return the thread that creates their deployments."""
        fleet.start()
        seeding = threading.Thread(target=fleet.seed, name="seed", daemon=True)
        seeding.start()
        return seeding

    def _wait_for_web(self, children: list[subprocess.Popen[bytes]], stopping: threading.Event) -> bool:
        if settings.BYTEOR_MODE == "worker":
            return True
        address = settings.BYTEOR_API_BIND_ORIGIN
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and not stopping.is_set():
            if any(child.poll() is not None for child in children):
                self.stderr.write("byteor: a child ended before it was up")
                sys.exit(1)
            try:
                request = urllib.request.Request(f"{address}/healthz", headers={"Host": self._own_host()})  # noqa: S310
                with urllib.request.urlopen(request, timeout=2):  # noqa: S310 - our own address
                    return True
            except OSError:
                time.sleep(0.1)
        return False

    def _own_host(self) -> str:
        return str(settings.BYTEOR_UI_BASE_URL).split("://", 1)[1]

    def _end(self, children: list[subprocess.Popen[bytes]], fleet: demonstration.Fleet | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        deadline = time.monotonic() + STOP_SECONDS
        for child in children:
            if child.poll() is None:
                child.terminate()
        if fleet is not None:
            fleet.stop()
        for child in children:
            try:
                child.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _greet(self, world: demonstration.Demo | None) -> None:
        lines = ["", f"ByteOr Cloud is up at {settings.BYTEOR_UI_BASE_URL}/"]
        if world is not None:
            lines += ["", "Sign in as (all of them in the demo tenant):"]
            lines += [f"  {a['email']:20} {a['password']:26} {a['role']}" for a in world.accounts]
            lines += [
                "",
                "A deployment needs approval: sign in as rita, open the inbox, approve it, and watch",
                f"  {demonstration.accounts_file().parent}/agents/*/data/redacted.jsonl",
                f"Accounts and API tokens are kept in {demonstration.accounts_file()}",
            ]
        else:
            lines += ["", "Create an organization with: manage.py bootstrap --org NAME --admin EMAIL"]
        lines += ["", "Stop with Ctrl-C.", ""]
        self.stdout.write("\n".join(lines))
        self.stdout.flush()
