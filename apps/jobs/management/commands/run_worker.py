"""`manage.py run_worker`: runs background jobs and chores until SIGTERM or SIGINT."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from apps.core.pooler import refuse_pooler
from apps.jobs.watchdog import Watchdog, run_chores


class Command(BaseCommand):
    """Ends within ten seconds of SIGTERM or SIGINT; its children end with it."""

    help = "Run background jobs and chores."

    def add_arguments(self, parser: ArgumentParser) -> None:
        child = parser.add_mutually_exclusive_group()
        child.add_argument("--cluster", action="store_true", help="internal: the supervised cluster")
        child.add_argument("--chores", action="store_true", help="internal: the supervised process of the chores")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["cluster"]:
            from apps.jobs.cluster import run_cluster  # starts django-q2, which only this process may

            run_cluster()
            return
        if options["chores"]:
            run_chores()
            return
        refuse_pooler()
        try:
            Watchdog().run(settings.BYTEOR_WORKER_BIND)
        except OSError as error:
            host, port = settings.BYTEOR_WORKER_BIND
            self.stderr.write(f"byteor: the worker can't listen on {host}:{port}: {error.strerror}")
            sys.exit(2)
