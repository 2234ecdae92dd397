"""`manage.py create_person --email E --org-id ID --role ROLE [--project-id ID] [--json]`."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from apps.access.roles import Role
from apps.console.setup import NewAccount, add_person, find_place
from apps.console.setup.command import AccountCommand
from apps.core.ids import parse_id


class Command(AccountCommand):
    """Create a user with a role. The credentials are printed once."""

    help = "Create a user with a role in an organization or one of its projects."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--email", required=True)
        parser.add_argument("--org-id", required=True)
        parser.add_argument("--project-id")
        parser.add_argument("--role", required=True, choices=[str(role) for role in Role])
        super().add_arguments(parser)

    def create(self, options: dict[str, Any]) -> NewAccount:
        org_id, project_id = parse_id(options["org_id"]), parse_id(options["project_id"])
        if org_id is None or (options["project_id"] and project_id is None):
            raise CommandError("an id is not a UUID", returncode=2)
        organization, project = find_place(org_id, project_id)
        role = Role(options["role"])
        return add_person(organization=organization, project=project, email=options["email"], role=role)
