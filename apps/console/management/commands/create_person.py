"""`manage.py create_person --email E --org-id ID --role ROLE [--project-id ID] [--json]`."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.access.roles import Role
from apps.console.setup import add_person, find_place
from apps.core.errors import ServiceError
from apps.core.ids import parse_id


class Command(BaseCommand):
    """Create a user with a role. The credentials are printed once."""

    help = "Create a user with a role in an organization or one of its projects."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--email", required=True)
        parser.add_argument("--org-id", required=True)
        parser.add_argument("--project-id")
        parser.add_argument("--role", required=True, choices=[str(role) for role in Role])
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        org_id, project_id = parse_id(options["org_id"]), parse_id(options["project_id"])
        if org_id is None or (options["project_id"] and project_id is None):
            raise CommandError("an id is not a UUID", returncode=2)
        try:
            organization, project = find_place(org_id, project_id)
            role = Role(options["role"])
            made = add_person(organization=organization, project=project, email=options["email"], role=role).as_dict()
        except ServiceError as error:
            raise CommandError(error.detail, returncode=2) from None
        if options["json"]:
            self.stdout.write(json.dumps(made))
            return
        for name, value in made.items():
            self.stdout.write(f"{name:9} {value if value is not None else '(as before)'}")
        self.stdout.write("The password and the token are not shown again.")
