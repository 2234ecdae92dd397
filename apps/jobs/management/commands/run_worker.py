"""`manage.py run_worker`: runs background jobs and chores until it is told to stop."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from apps.jobs.worker import Watchdog, run_cluster


class Command(BaseCommand):
    """Ends within ten seconds of SIGTERM or SIGINT; its children end with it."""

    help = "Run background jobs and chores."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--cluster", action="store_true", help="internal: the supervised child")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["cluster"]:
            run_cluster()
            return
        try:
            Watchdog().run(settings.BYTEOR_WORKER_BIND)
        except OSError as error:
            host, port = settings.BYTEOR_WORKER_BIND
            self.stderr.write(f"byteor: the worker can't listen on {host}:{port}: {error.strerror}")
            sys.exit(2)
