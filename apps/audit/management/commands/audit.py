"""`manage.py audit verify|export --org-id ID`. Works for deleted organizations too."""

from __future__ import annotations

import json
import re
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.audit import services
from apps.core.ids import parse_id


class Command(BaseCommand):
    """Verify a chain (exit 1 when it is broken), or export it as JSON lines, oldest first."""

    help = "Verify or export the audit chain of an organization, or with --system the system chain."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("action", choices=["verify", "export"])
        parser.add_argument(
            "--expect", metavar="COUNT:HASH", help="a head recorded earlier; fail if the chain no longer contains it"
        )
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--org-id")
        which.add_argument("--system", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        organization_id = None
        if options["org_id"]:
            organization_id = parse_id(options["org_id"])
            if organization_id is None:
                raise CommandError("--org-id is not a UUID", returncode=2)
        if options["action"] == "export":
            for event in services.events_of(organization_id):
                line = services.document(event) | {"previous_hash": event.previous_hash, "hash": event.hash}
                self.stdout.write(json.dumps(line, ensure_ascii=False))
            return
        result = services.verify(organization_id, expect=_parse_head(options["expect"]))
        self.stdout.write(json.dumps(result.as_dict()))
        if not result.ok:
            sys.exit(1)


def _parse_head(text: str | None) -> tuple[int, str] | None:
    """Parse `COUNT:HASH` to (count, hash). Raises CommandError (exit status 2) for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", text)
    if found is None or int(found[1]) < 1:
        raise CommandError("--expect is not COUNT:HASH as `audit verify` prints them", returncode=2)
    return int(found[1]), found[2]
