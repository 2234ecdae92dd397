"""Signs of life: a heartbeat that goes through broker, queue and worker, and who looks at it."""

from __future__ import annotations

import datetime as dt
import os
import socket
import uuid

from apps.core import clock
from apps.core.readiness import NotReady
from apps.jobs.models import WorkerBeat

CLUSTER_ENV = "BYTEOR_CLUSTER_ID"
BEAT_EVERY_SECONDS = 5.0
STALE_SECONDS = 20.0


def own_cluster() -> uuid.UUID | None:
    """The cluster that this process belongs to; None outside of any."""
    text = os.environ.get(CLUSTER_ENV)
    return uuid.UUID(text) if text else None


def beat() -> None:
    """Write that the cluster this process belongs to is alive."""
    cluster = own_cluster()
    if cluster is None:
        return
    now = {"beat_at": clock.now(), "host": socket.gethostname()[:255], "pid": os.getpid()}
    if not WorkerBeat.objects.filter(pk=cluster).update(**now):
        WorkerBeat.objects.get_or_create(cluster_id=cluster, defaults=now)


def last_beat(cluster_id: uuid.UUID) -> dt.datetime | None:
    """When this cluster last gave a sign of life."""
    return WorkerBeat.objects.filter(pk=cluster_id).values_list("beat_at", flat=True).first()


def forget(*, before: dt.datetime) -> int:
    """Remove the heartbeats of clusters that ended."""
    return int(WorkerBeat.objects.filter(beat_at__lt=before).delete()[0])


def check_worker() -> None:
    """Readiness: some worker gave a sign of life lately."""
    newest = WorkerBeat.objects.order_by("-beat_at").values_list("beat_at", flat=True).first()
    if newest is None:
        raise NotReady("no worker has given a sign of life yet")
    age = (clock.now() - newest).total_seconds()
    if age > STALE_SECONDS:
        raise NotReady(f"the last sign of life of a worker is {int(age)} s old")
