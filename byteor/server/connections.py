"""Limits on idle, stalled and excess connections.

Granian counts a connection from its accept and bounds the time for a request head. It does not detect a silent connection, a
response that is not read, or too many connections. The kernel does (TCP_INFO): a thread inspects the sockets of this process and
shuts down those that exceed a limit.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import structlog

from byteor.server.limits import Limits

log = structlog.get_logger(__name__)

LOOK_EVERY = 1.0
LOOK_OFTEN = 0.1
_ESTABLISHED, _CLOSE_WAIT = 1, 8
_WORD, _COUNTS = struct.Struct("I"), struct.Struct("QQ")
_INFO_BYTES = 160
"""Bytes of `struct tcp_info` that are read. Its layout is stable."""

Peer = tuple[str, int]


@dataclass(slots=True)
class _Seen:
    """State of one open connection.

    `acked_at` is when its client last acknowledged data. `behind_since` is since when there was always data to send, and
    `acked_then` is how much the client had acknowledged by then.
    """

    inode: int
    peer: Peer
    since: float
    acked: int
    acked_at: float
    behind_since: float
    acked_then: int = 0

    def note(self, state: _State, now: float) -> None:
        """Update the state from a new observation."""
        if not state.unsent:
            self.behind_since, self.acked_then = now, state.acked
        if not state.unsent or state.acked != self.acked:
            self.acked, self.acked_at = state.acked, now


@dataclass(slots=True)
class _State:
    idle: float
    received: int
    acked: int
    unsent: bool


class Connections:
    """Enforces the limits on the accepted TCP connections of this process (Linux)."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._serving: Counter[Peer] = Counter()
        self._seen: dict[int, _Seen] = {}
        self._known: dict[int, int] = {}
        self._ports: set[int] = set()
        self._stopped = threading.Event()

    @contextlib.contextmanager
    def serving(self, client: Any) -> Iterator[None]:
        """Mark the connection of `client` (host, port) as serving a request inside the block."""
        peer = (str(client[0]), int(client[1])) if client else ("", 0)
        self._serving[peer] += 1
        try:
            yield
        finally:
            self._serving[peer] -= 1
            if not self._serving[peer]:
                del self._serving[peer]

    def start(self) -> None:
        """Start the monitoring thread."""
        if sys.platform == "linux":
            threading.Thread(target=self._run, name="byteor-connections", daemon=True).start()

    def close(self) -> None:
        """Stop the monitoring thread."""
        self._stopped.set()

    def _run(self) -> None:
        pause, before = LOOK_EVERY, 0
        while not self._stopped.wait(pause):
            try:
                count = self.look(time.monotonic())
            except OSError as error:
                log.warning("connection monitoring failed", error=str(error))
                continue
            # many connections, or a fast increase: check before the limit is reached
            growing = count - before > self._limits.connections // 16
            pause = LOOK_OFTEN if growing or count > self._limits.connections // 2 else LOOK_EVERY
            before = count

    def look(self, now: float) -> int:
        """Close the connections that exceed a limit, and return the number of the others."""
        self._note_new(now)
        closed: Counter[str] = Counter()
        idle: list[tuple[bool, float, int]] = []
        trickling: list[tuple[float, int]] = []
        left = 0
        for fd, seen in list(self._seen.items()):
            state = _examine(fd, seen)
            if state is None:
                del self._seen[fd]
                continue
            seen.note(state, now)
            if not state.received and now - seen.since >= self._limits.silent_seconds:
                closed["silent"] += _shut(fd, seen)
            elif now - seen.acked_at >= self._limits.unread_seconds:
                closed["unread"] += _shut(fd, seen)
            else:
                left += 1
                if self._trickles(seen, now):
                    trickling.append((seen.behind_since, fd))
                if seen.peer not in self._serving:
                    idle.append((state.acked > 0, -state.idle, fd))
        # too many: close connections without a request, first those never served, then the longest idle
        excess = max(0, left - self._limits.connections * 3 // 4)
        for _, _, fd in sorted(idle)[:excess]:
            closed["idle"] += _shut(fd, self._seen[fd])
        for _, fd in sorted(trickling)[: max(0, len(trickling) - self._limits.trickling)]:
            closed["trickling"] += _shut(fd, self._seen[fd])
        if closed:
            log.info("connections closed", open=left, **closed)
        return left

    def _trickles(self, seen: _Seen, now: float) -> bool:
        """True if the client has been reading a response too slowly for too long."""
        seconds = now - seen.behind_since
        little = seen.acked - seen.acked_then < seconds * self._limits.trickle_bytes_per_second
        return little and seconds >= self._limits.unread_seconds

    def _note_new(self, now: float) -> None:
        """Find the sockets accepted since the last check. A reused file descriptor has another inode."""
        fresh: list[tuple[int, int]] = []
        inodes: dict[int, int] = {}
        for fd in map(int, os.listdir("/proc/self/fd")):
            try:
                status = os.fstat(fd)
            except OSError:
                continue
            if stat.S_ISSOCK(status.st_mode):
                inodes[fd] = status.st_ino
                if self._known.get(fd) != status.st_ino:
                    fresh.append((fd, status.st_ino))
        self._known = inodes
        ends = [(fd, inode, *_ends(fd)) for fd, inode in fresh]
        self._ports |= {port for _, _, port, peer in ends if peer is None and port}
        for fd, inode, port, peer in ends:
            self._seen.pop(fd, None)
            if peer is not None and port in self._ports:
                self._seen[fd] = _Seen(inode, peer, now, 0, now, now)


def _examine(fd: int, seen: _Seen) -> _State | None:
    """The kernel's state of the connection; None when it is closed."""
    try:
        if os.fstat(fd).st_ino != seen.inode:
            return None
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=fd)
    except OSError:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    except OSError:
        return None
    finally:
        sock.detach()
    if len(info) < _INFO_BYTES or info[0] not in (_ESTABLISHED, _CLOSE_WAIT):
        return None
    acked, received = _COUNTS.unpack_from(info, 120)
    unacked, last_data, not_sent = (_WORD.unpack_from(info, offset)[0] for offset in (24, 52, 144))
    return _State(idle=last_data / 1000, received=received, acked=acked, unsent=bool(unacked or not_sent))


def _shut(fd: int, seen: _Seen) -> bool:
    """Shut down the connection in both directions; the HTTP server then closes its socket. False if it is closed already."""
    try:
        copy = os.dup(fd)
    except OSError:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=copy) as sock:
        # the file descriptor may have been reused
        if os.fstat(copy).st_ino != seen.inode:
            return False
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
    return True


def _ends(fd: int) -> tuple[int, Peer | None]:
    """(own port, peer) of a TCP socket; (own port, None) if it listens, (0, None) for any other socket."""
    try:
        copy = os.dup(fd)
    except OSError:
        return 0, None
    with socket.socket(fileno=copy) as sock:
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
            return 0, None
        try:
            port = int(sock.getsockname()[1])
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return port, None
            peer = sock.getpeername()
        except OSError:
            return 0, None
        return port, (str(peer[0]), int(peer[1]))
