"""The cluster of workers: django-q2's sentinel, run in this process, with rules for which deaths end the whole cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import structlog
from django.db import Error, connection

# Not in django-q2's documentation: its modules that name their processes where the package `setproctitle` is installed, which
# development tools bring along; `_in_child` names them.
from django_q import cluster as q_cluster
from django_q import monitor as q_monitor
from django_q import pusher as q_pusher
from django_q import worker as q_worker

# Not in django-q2's documentation, apart from its name. `Cluster`, which is, always starts the stock sentinel, and that one waits
# for ever on the lock of a queue whose reader was killed.
from django_q.cluster import Sentinel

from apps.core.processes import die_with_parent, on_stop_signal
from apps.jobs.broker import JobTableBroker
from apps.jobs.process_health import own_cluster
from apps.jobs.services import give_up_leases

log = structlog.get_logger(__name__)

UNSAFE_EXIT = 70
IDLE, RECYCLED = -1, -2
"""django-q2's values of a worker's timer. While a task runs it holds the seconds left; 0 when they are over."""

_role = "child"


def _in_child() -> None:
    # a child is ended by SIGTERM alone, and never lives longer than the sentinel
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent()
    with contextlib.suppress(OSError):  # Linux: what `ps` and the operator see
        Path("/proc/self/comm").write_text(f"byteor-{_role}")


class Supervisor(Sentinel):  # type: ignore[misc]
    """Replaces a worker that died or ran out of time with a task, at once, and gives its job up.

    A process that died while it held the end of a queue (an idle worker, the monitor, the pusher) leaves the queue's
    lock taken for good. The whole cluster then ends, and the watchdog starts another.
    """

    def __init__(self) -> None:
        super().__init__(threading.Event(), threading.Event(), uuid.uuid4(), JobTableBroker(), start=False)
        on_stop_signal(self.stop_event.set, numbers=[signal.SIGTERM])

    def spawn_process(self, target: Any, *args: Any) -> Any:
        """As django-q2 does; the new process carries its role as its name."""
        global _role
        _role = target.__name__
        return super().spawn_process(target, *args)

    def reincarnate(self, process: Any) -> None:
        """What django-q2 does about a process that ended or is out of time; see the class."""
        timer = getattr(process, "timer", None)
        left = None if timer is None else int(timer.value)
        code, pid = process.exitcode, process.pid
        if left is None or left == IDLE:
            role = "monitor" if process is self.monitor else "pusher" if process is self.pusher else "idle worker"
            log.error("a process of the cluster died; the cluster is replaced", role=role, pid=pid, code=code)
            sys.stderr.flush()
            os._exit(UNSAFE_EXIT)  # its children die with it
        super().reincarnate(process)
        if left == RECYCLED:
            return
        if code is None:
            log.error("job does not end although its time is over; its worker is ended", pid=pid)
        else:
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
    for module in (q_cluster, q_monitor, q_pusher, q_worker):
        module.setproctitle = None
    os.register_at_fork(after_in_child=_in_child)
    connection.close()
    Supervisor().start()
