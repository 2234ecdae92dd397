"""A job type whose effect is a row, written in the transaction that ends the job; or that does something to its worker first."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from django.apps import AppConfig

TYPE = "recovery"
SCHEDULED = "recovery_scheduled"
STUCK_ENV = "BYTEOR_TEST_STUCK"


class RecoveryConfig(AppConfig):
    """Registers handlers, schedule and chore."""

    name = "tests.recovery"

    def ready(self) -> None:
        from django.db import connection, transaction

        from apps.jobs.registry import JobRun, register_chore, register_handler, register_schedule
        from apps.jobs.services import complete_in_transaction

        def run(run: JobRun) -> None:
            match run.payload.get("do"):
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "os._exit":
                    os._exit(3)
                case "sys.exit":
                    sys.exit(3)
                case "endless":
                    while True:
                        time.sleep(0.05)
                case "deaf":
                    while True:
                        try:
                            time.sleep(60)
                        except BaseException:  # ignores that its time is over
                            continue
                case "wait":
                    Path(run.payload["begun"]).write_text(str(os.getpid()))
                    while not Path(run.payload["go"]).exists():
                        time.sleep(0.02)
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("INSERT INTO recovery_effects (subject) VALUES (%s)", [str(run.subject_id)])
                complete_in_transaction(run)

        register_handler(TYPE, run, max_attempts=2, base_seconds=0, cap_seconds=0, timeout_seconds=3)
        register_handler(SCHEDULED, run)
        register_schedule(SCHEDULED, level="environment", minutes=1440)
        if os.environ.get(STUCK_ENV):
            register_chore("stuck", every_seconds=1, run=stuck, timeout_seconds=1)


def stuck(now: object) -> int:
    """A chore that never ends while the file is there."""
    while Path(os.environ[STUCK_ENV]).exists():
        time.sleep(0.05)
    return 1
