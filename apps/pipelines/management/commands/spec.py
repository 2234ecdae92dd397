"""`manage.py spec validate|canonical|hash|plan|dot|diff FILE…`: the compiler as a command."""

from __future__ import annotations

import sys
from argparse import REMAINDER
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from apps.runtime.spec.cli import USAGE, main


class Command(BaseCommand):
    """Hands its arguments to the compiler's own command line and keeps its exit status."""

    help = USAGE
    requires_system_checks: list[str] = []

    def run_from_argv(self, argv: list[str]) -> None:
        sys.exit(main(argv[2:]))

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("arguments", nargs=REMAINDER)

    def handle(self, *args: Any, **options: Any) -> None:
        status = main([*args, *options["arguments"]])
        if status:
            sys.exit(status)
