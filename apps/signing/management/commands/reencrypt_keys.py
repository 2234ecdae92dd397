"""`manage.py reencrypt_keys [--dry-run] [--json]`: move everything to the primary key-encryption key."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.audit import services as audit
from apps.signing.services import primary_id, reencrypt


class Command(BaseCommand):
    """Re-encrypts keys. Safe to stop, to repeat, and to run next to web and worker processes. Exit status 1 if a key
    failed."""

    help = "Re-encrypt private signing keys, and renew the MACs of audit chains, under the primary key-encryption key."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="report what would be done, and change nothing")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        dry = bool(options["dry_run"])
        keys, heads = reencrypt(dry_run=dry), audit.reseal(dry_run=dry)
        if options["json"]:
            self.stdout.write(
                json.dumps(
                    {
                        "primary": primary_id(),
                        "dry_run": dry,
                        "signing_keys": keys.moved,
                        "audit_chains": heads.moved,
                        "unreadable": keys.unreadable,
                        "unproved": heads.unproved,
                    }
                )
            )
        else:
            self._report(dry, keys.moved, heads.moved)
        problems = [*keys.unreadable.values(), *(f"Audit chain {c}: {why}." for c, why in heads.unproved.items())]
        if problems:
            raise CommandError("\n".join(problems))
        if not options["json"] and not keys.moved and not heads.moved:
            self.stdout.write(f"everything is already encrypted under '{primary_id()}'")

    def _report(self, dry: bool, moved: dict[str, int], heads: int) -> None:
        verb = "would come" if dry else "are now"
        for name, count in sorted(moved.items()):
            self.stdout.write(f"{count} signing keys that were under '{name}' {verb} under '{primary_id()}'")
        if heads:
            self.stdout.write(f"{heads} audit chains {verb} under '{primary_id()}'")
