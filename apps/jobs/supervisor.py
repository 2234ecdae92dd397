"""The cluster: django-q2's sentinel over its workers, run in this process, with rules for what may not go on after a death."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import uuid
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
from django.db import Error, connection
from django_q.cluster import Sentinel

from apps.core.processes import die_with_parent
from apps.jobs.broker import JobTableBroker
from apps.jobs.liveness import own_cluster
from apps.jobs.services import give_up_leases
from apps.jobs.stopping import SharedFlag, cluster_stop

log = structlog.get_logger(__name__)

UNSAFE_EXIT = 70


_role = "child"


def _in_child() -> None:
    # a child is ended by SIGTERM alone, and never lives longer than the sentinel
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent()
    with contextlib.suppress(OSError):  # Linux: what `ps` and the operator see
        Path("/proc/self/comm").write_text(f"byteor-{_role}")


class Supervisor(Sentinel):  # type: ignore[misc]
    """Replaces a worker that died in its turn, at once, and gives its job up.

    A process that died while it held the end of a queue (a worker between turns, the monitor, the pusher) leaves the queue's
    lock taken for good, which would stop a stock cluster: this one then ends as a whole, and the watchdog starts another.
    """

    def __init__(self) -> None:
        super().__init__(cluster_stop, SharedFlag(), uuid.uuid4(), JobTableBroker(), start=False)
        signal.signal(signal.SIGTERM, self._on_stop)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        cluster_stop.set()

    def spawn_process(self, target: Any, *args: Any) -> Any:
        """As django-q2 does; the new process carries its role as its name."""
        global _role
        _role = target.__name__
        return super().spawn_process(target, *args)

    def reincarnate(self, process: Any) -> None:
        """What django-q2 does about a process that ended; see above. `timer` is positive during a turn, -2 when recycled."""
        state = getattr(getattr(process, "timer", None), "value", None)
        code, pid = process.exitcode, process.pid
        if state is None or int(state) == -1:
            role = "monitor" if process is self.monitor else "pusher" if process is self.pusher else "idle worker"
            log.error("a process of the cluster died; the cluster is replaced", role=role, pid=pid, code=code)
            sys.stderr.flush()
            os._exit(UNSAFE_EXIT)  # its children die with it
        super().reincarnate(process)
        if int(state) != -2:
            log.error("a worker died at work and was replaced", pid=pid, code=code)
            self._give_up(pid)

    def _give_up(self, pid: int) -> None:
        cluster = own_cluster()
        try:
            if cluster is not None:
                give_up_leases(cluster=cluster, pid=pid)
        except Error as error:
            log.warning("its lease runs out by itself", error=type(error).__name__)
        finally:
            connection.close()


def run_cluster() -> None:
    """A cluster until SIGTERM. Every process it forks dies with it, and it with its own parent."""
    die_with_parent()
    os.register_at_fork(after_in_child=_in_child)
    connection.close()
    Supervisor().start()
