"""Limits of one web process on requests, bodies, waits and connections."""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace
from typing import Self

KIB, MIB, GIB = 1024, 1024**2, 1024**3
_SPARE_FILES = 512


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one process, in seconds, bytes and counts."""

    threads: int = 8
    """Requests processed at the same time."""
    queue: int = 2500
    """Complete requests that may wait for a thread; beyond it 503. A fleet of 2,000 may connect at once after a restart."""

    head_bytes: int = 64 * KIB
    """Maximum bytes of a request head; beyond it 431. Bounds the memory of an unauthenticated connection."""

    body_idle_seconds: float = 10.0
    body_seconds: float = 30.0
    body_bytes_per_second: int = 256 * KIB
    """Minimum rate: a body has `body_seconds` plus one second for each of these many bytes."""
    body_in_memory: int = 64 * KIB
    """A larger body is stored in a temporary file."""
    bodies_in_memory: int = 32 * MIB
    """Maximum bytes of all bodies in memory; beyond it smaller bodies use files too."""
    bodies_in_files: int = 2 * GIB
    bodies_open: int = 4096
    bodies_open_per_address: int = 256
    """Maximum incomplete bodies; beyond it the oldest of the same address is dropped."""

    waits: int = 5000
    waits_per_holder: int = 2
    waits_woken_at_once: int = 4
    """Of `threads`, those that call the view for woken waits at most; the others stay free for other requests."""
    waits_looked_at_once: int = 100
    """Maximum woken waits that one thread checks together."""
    wake_all_seconds: float = 1.0
    """Period over which the checks of all waits are spread when anything may have changed."""

    connections: int = 8192
    """Maximum open connections; more stay in the listening socket's queue."""
    silent_seconds: float = 10.0
    """A connection that sends nothing is closed after it."""
    unread_seconds: float = 30.0
    """A connection whose client reads nothing of a response for this long is closed."""
    trickling: int = 512
    trickle_bytes_per_second: int = KIB
    """Maximum responses that are read below the minimum rate for `unread_seconds`; beyond it the longest running are closed."""

    stop_seconds: float = 3.0
    """Time for incomplete bodies after the signal to stop."""
    kill_seconds: float = 7.0
    """Maximum time from the signal to stop until the process exits."""

    @classmethod
    def of_this_process(cls) -> Self:
        """Raise the limit of open files, and return the limits with as many connections as it allows."""
        usual = cls()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if hard == resource.RLIM_INFINITY:
            return usual
        return replace(usual, connections=max(128, min(usual.connections, hard - _SPARE_FILES)))
