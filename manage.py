#!/usr/bin/env python
"""The one entry point."""

import os
import sys


def main() -> None:
    """Run the command; a database that is away or not migrated is one line and exit code 2 (`--traceback` shows all)."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "byteor.settings")
    from django.core.management import execute_from_command_line
    from django.db import Error

    try:
        execute_from_command_line(sys.argv)
    except Error as error:
        from apps.core.commands import database_line

        line = database_line(error)
        if line is None or "--traceback" in sys.argv:
            raise
        sys.stderr.write(f"byteor: {line}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
