"""`manage.py paths [--write FILE]`: every path of the API as a Markdown table, read from the URL conf and the views."""

from __future__ import annotations

import inspect
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand
from django.urls import URLPattern, URLResolver, get_resolver

from apps.api.authentication.agents import EnrollmentAuthentication
from apps.api.base import AgentView, ApiView
from apps.api.operations import operation_of

COMMAND = "manage.py paths --write docs/paths.md"
BEGIN, END = f"<!-- paths: {COMMAND} -->", "<!-- end -->"
PREFIX = "api/v1/"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
ENVIRONMENT = "orgs/{org_id}/projects/{project_id}/environments/{environment_id}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path."""

    path: str
    method: str
    name: str
    permission: str
    summary: str
    app: str


def endpoints() -> list[Endpoint]:
    """Every method of every path below the API's prefix, by path."""
    found = []
    for path, pattern in _patterns(get_resolver()):
        if not path.startswith(PREFIX):
            continue
        view: type[ApiView] = pattern.callback.cls  # type: ignore[attr-defined]
        shown = re.sub(r"<\w+:(\w+)>", r"{\1}", path.removeprefix(PREFIX)).replace(ENVIRONMENT, "ENV")
        found += [
            Endpoint(f"/{shown}".replace("/ENV", "ENV"), method, pattern.name or "", *_described(view, method))
            for method in METHODS
            if operation_of(view, method) is not None
        ]
    return sorted(found, key=lambda each: (each.path, METHODS.index(each.method)))


def _patterns(resolver: URLResolver, prefix: str = "") -> Iterator[tuple[str, URLPattern]]:
    for item in resolver.url_patterns:
        path = prefix + str(item.pattern)
        if isinstance(item, URLResolver):
            yield from _patterns(item, path)
        else:
            yield path, item


def _described(view: type[ApiView], method: str) -> tuple[str, str, str]:
    """The required credential or permission, the summary and the app of an endpoint."""
    text = inspect.getdoc(getattr(view, method.lower())) or ""
    return _needed(view, method), " ".join(text.split("\n\n")[0].split()), view.__module__.split(".")[1]


def _needed(view: type[ApiView], method: str) -> str:
    declared = operation_of(view, method)
    assert declared is not None
    if declared.authentication is EnrollmentAuthentication:
        return "an enrollment token"
    if issubclass(view, AgentView):
        return "the agent's own key"
    return str(declared.permission.value) if declared.permission is not None else "signed in"


def table() -> str:
    """All endpoints as one Markdown table."""
    lines = ["| method | path | name | needs | what it does | app |", "|---|---|---|---|---|---|"]
    for each in endpoints():
        name = f"`{each.name}`" if each.name else ""
        summary = each.summary.replace("|", "\\|")
        lines.append(f"| {each.method} | `{each.path}` | {name} | {each.permission} | {summary} | `{each.app}` |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """`text` with the table between the markers regenerated."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


class Command(BaseCommand):
    """Print the table, or write it between the markers of a file."""

    help = "List the paths of the API from the code."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--write", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path | None = options["write"]
        if path is None:
            self.stdout.write(table())
            return
        path.write_text(with_table(path.read_text()))
