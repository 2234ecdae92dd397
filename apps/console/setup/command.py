"""Base of the commands that create an account."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.console.setup import NewAccount
from apps.core.errors import ServiceError


class AccountCommand(BaseCommand):
    """Creates an account, and prints its credentials once."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="one JSON object on standard output")

    def create(self, options: dict[str, Any]) -> NewAccount:
        """Create the account. Raises ServiceError."""
        raise NotImplementedError

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            made = self.create(options).as_dict()
        except ServiceError as error:
            raise CommandError(error.detail, returncode=2) from None
        if options["json"]:
            self.stdout.write(json.dumps(made))
            return
        for name, value in made.items():
            self.stdout.write(f"{name:9} {value if value is not None else '(as before)'}")
        self.stdout.write("The password and the token are not shown again.")
