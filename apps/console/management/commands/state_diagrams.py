"""`manage.py state_diagrams [--write FILE]`: the state machines as Mermaid, read from the transitions in the code."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand

from apps.approvals.models import Approval
from apps.core.fsm import legal_moves, status_field
from apps.deployments.models import Deployment
from apps.jobs.models import Job
from apps.signing.models import SigningKey

BEGIN, END = "<!-- state diagrams: manage.py state_diagrams --write docs/architecture.md -->", "<!-- end -->"


def diagrams() -> str:
    """Markdown with one Mermaid diagram for each machine."""
    parts = []
    for model in (Deployment, Approval, Job, SigningKey):
        field = status_field(model)
        initial = field.initial if field else ""
        lines = [f"    [*] --> {initial}"]
        for source, targets in sorted(legal_moves(model).items()):
            lines += [f"    {source} --> {target}" for target in sorted(targets)]
            if not targets:
                lines.append(f"    {source} --> [*]")
        parts.append(f"**{model.__name__}**\n\n```mermaid\nstateDiagram-v2\n" + "\n".join(lines) + "\n```")
    return "\n\n".join(parts)


class Command(BaseCommand):
    """Prints, or puts the diagrams between the markers of a file."""

    help = "Draw the state machines from the code."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--write", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["write"] is None:
            self.stdout.write(diagrams())
            return
        path: Path = options["write"]
        text = path.read_text()
        head, _, rest = text.partition(BEGIN)
        _, _, tail = rest.partition(END)
        path.write_text(f"{head}{BEGIN}\n\n{diagrams()}\n\n{END}{tail}")
