"""`manage.py run_web`: runs the web server until it is stopped."""

from __future__ import annotations

import sys
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand

from apps.core.pooler import refuse_pooler
from byteor.server.run import serve


class Command(BaseCommand):
    """Start the web server. Used by `up`, service managers and tests.

    Collects the static files first. Ends within ten seconds of SIGTERM or SIGINT. A server process that dies is replaced; it
    ends when this process ends, also when this one is killed.
    """

    help = "Run the web server."

    def handle(self, *args: Any, **options: Any) -> None:
        refuse_pooler()
        call_command("collectstatic", interactive=False, verbosity=0)
        host, port = settings.BYTEOR_API_BIND
        try:
            serve(host, port, behind_proxy=bool(settings.BYTEOR_TRUSTED_PROXIES.networks))
        except OSError as error:
            self.stderr.write(f"byteor: the web server can't listen on {host}:{port}: {error.strerror}")
            sys.exit(2)
