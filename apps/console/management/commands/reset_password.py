"""`manage.py reset_password --email E [--json]`."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.urls import reverse

from apps.access.services import make_reset_link
from apps.console.setup import OPERATOR
from apps.core import clock
from apps.core.errors import ServiceError


class Command(BaseCommand):
    """Create a one-time link to set a new password. It is printed once and valid for an hour."""

    help = "Create a one-time link to set a new password, for a user whose identity you have verified."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--email", required=True, help="address of the account")
        parser.add_argument("--json", action="store_true", help="one JSON object on standard output")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            row, token = make_reset_link(actor=OPERATOR, email=options["email"])
        except ServiceError as error:
            raise CommandError(error.detail, returncode=2) from None
        link = settings.BYTEOR_UI_BASE_URL + reverse("auth-reset-password", args=[token.reveal()])
        expires = str(clock.rfc3339(row.expires_at))
        if options["json"]:
            made = {"user_id": str(row.user_id), "email": row.user.email, "reset_url": link, "expires_at": expires}
            self.stdout.write(json.dumps(made))
            return
        self.stdout.write(f"{link}\nIt works once, until {expires}, and is not shown again.")
        self.stdout.write("Using it ends the user's sessions and revokes their personal tokens.")
