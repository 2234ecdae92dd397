"""`manage.py agent_version [--pin]`: the version of the agent, and the digest of its sources.

A host installs only an agent with a higher version. `apps/runtime/agent/versions.json` has the digest of each version;
a test fails when the sources change and the version does not.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.runtime import agent
from apps.runtime.agent.build import packed_sha256
from apps.runtime.trust import version_tuple

PINS = Path(agent.__file__).with_name("versions.json")


def pinned() -> dict[str, str]:
    """Return {version: digest of its sources}, oldest first."""
    found: dict[str, str] = json.loads(PINS.read_text())
    return found


class Command(BaseCommand):
    """Prints version and digest, or pins them. CommandError if the version is pinned with other sources."""

    help = "Show the version of the agent, or pin it to what is packed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--pin", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        digest = packed_sha256()
        if options["pin"]:
            pins = pinned()
            if pins.setdefault(agent.VERSION, digest) != digest:
                raise CommandError(
                    f"{agent.VERSION} is pinned with other sources, and hosts that run it would not install these: raise VERSION in "
                    f"apps/runtime/agent/__init__.py. If no host has it yet, remove its line from {PINS.name} instead."
                )
            if max(pins, key=version_tuple) != agent.VERSION:
                raise CommandError(f"{agent.VERSION} is lower than a pinned version.")
            PINS.write_text(json.dumps(pins, indent=2) + "\n")
        self.stdout.write(f"{agent.VERSION} {digest}")
