"""`manage.py state_diagrams [--model NAME] [--write FILE]`: the state machines as Mermaid, read from the transitions in the code."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Model

from apps.approvals.models import Approval
from apps.core.fsm import legal_moves, status_field
from apps.deployments.models import Deployment
from apps.jobs.models import Job
from apps.signing.models import SigningKey

BEGIN, END = re.compile(r"<!-- state diagrams: .* -->\n"), "<!-- end -->"
MODELS: dict[str, type[Model]] = {model.__name__: model for model in (Deployment, Approval, Job, SigningKey)}


def diagrams(*names: str) -> str:
    """Markdown with one Mermaid diagram per state machine, or only for the models in `names`."""
    parts = []
    for model in [MODELS[name] for name in names or MODELS]:
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
    """Print the diagrams, or write them between the markers of a file."""

    help = "Draw the state machines from the code."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--model", choices=MODELS)
        parser.add_argument("--write", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        drawn = diagrams(options["model"]) if options["model"] else diagrams()
        if options["write"] is None:
            self.stdout.write(drawn)
            return
        path: Path = options["write"]
        text = path.read_text()
        begin = BEGIN.search(text)
        if begin is None:
            raise CommandError(f"{path} has no place for state diagrams")
        tail = text[text.index(END, begin.end()) :]
        path.write_text(f"{text[: begin.end()]}\n{drawn}\n\n{tail}")
