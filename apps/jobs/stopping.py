"""One byte that the processes of a cluster share: whether it is to stop. Safe to set from a signal handler."""

from __future__ import annotations

import mmap
import time


class SharedFlag:
    """Shared with every process forked after it was made. Has the part of `multiprocessing.Event` that django-q2 asks for."""

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 1)

    def set(self) -> None:
        self._byte[0] = 1

    def is_set(self) -> bool:
        return self._byte[0] == 1

    def wait(self, timeout: float) -> bool:
        """Until it is set, or `timeout` seconds; whether it is."""
        until = time.monotonic() + timeout
        while not self.is_set() and (left := until - time.monotonic()) > 0:
            time.sleep(min(0.25, left))
        return self.is_set()


cluster_stop = SharedFlag()


def stopping() -> bool:
    """Whether the cluster that this process belongs to is to stop."""
    return cluster_stop.is_set()
