"""`manage.py bootstrap --org NAME --admin EMAIL [--json]`."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from apps.console.setup import NewAccount, bootstrap
from apps.console.setup.command import AccountCommand


class Command(AccountCommand):
    """Create an organization and its first admin. The credentials are printed once."""

    help = "Create an organization with its first admin."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--org", required=True, help="name of the organization")
        parser.add_argument("--admin", required=True, help="e-mail address of its first admin")
        super().add_arguments(parser)

    def create(self, options: dict[str, Any]) -> NewAccount:
        return bootstrap(organization=options["org"], email=options["admin"])
