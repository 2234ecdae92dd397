"""`manage.py bootstrap --org NAME --admin EMAIL [--json]`."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.console.setup import bootstrap
from apps.core.errors import ServiceError


class Command(BaseCommand):
    """Create an organization and its first admin. The credentials are printed once."""

    help = "Create an organization with its first admin."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--org", required=True, help="name of the organization")
        parser.add_argument("--admin", required=True, help="e-mail address of its first admin")
        parser.add_argument("--json", action="store_true", help="one JSON object on standard output")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            made = bootstrap(organization=options["org"], email=options["admin"]).as_dict()
        except ServiceError as error:
            raise CommandError(error.detail, returncode=2) from None
        if options["json"]:
            self.stdout.write(json.dumps(made))
            return
        for name, value in made.items():
            self.stdout.write(f"{name:9} {value if value is not None else '(as before)'}")
        self.stdout.write("The password and the token are not shown again.")
