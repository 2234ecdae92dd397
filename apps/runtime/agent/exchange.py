"""One HTTP exchange under one deadline: every wait of it, from connecting to the last byte of the answer, ends there.

`http.client` bounds each single wait, so that a peer which sends a byte a second holds it for ever. Here its socket is wrapped
in one that gives each wait what is left of the whole, and that takes no more than so many bytes, however they are framed.
Looking up a name is the one thing that is bounded by the host's resolver alone.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import time
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from typing_extensions import Buffer


class TooMuch(http.client.HTTPException):
    """The answer, its framing included, has more bytes than are read."""


class UnsendableRequest(Exception):
    """The request can't be written as HTTP: what it was made of is wrong, and it would be wrong the next time too."""


class TimedSocket:
    """A connected socket as `http.client` uses one. `deadline` is a moment of the monotonic clock, `budget` bytes to receive."""

    def __init__(self, sock: socket.socket, deadline: float, budget: int) -> None:
        self._sock = sock
        self._users = 1
        self.deadline = deadline
        self.budget = budget

    def sendall(self, data: Buffer) -> None:
        """Send it all, or raise TimeoutError at the deadline."""
        view = memoryview(data).cast("B")
        while view:
            self._sock.settimeout(time_left(self.deadline))
            view = view[self._sock.send(view) :]

    def receive_into(self, buffer: Buffer) -> int:
        """What has arrived, waiting for the first byte of it. TimeoutError at the deadline, TooMuch beyond the budget."""
        if self.budget <= 0:
            raise TooMuch("the answer is too long")
        self._sock.settimeout(time_left(self.deadline))
        count = self._sock.recv_into(memoryview(buffer).cast("B")[: self.budget])
        self.budget -= count
        return count

    def makefile(self, mode: str) -> io.BufferedReader:
        """A file to read from; the socket stays open until it is closed too."""
        self._users += 1
        return io.BufferedReader(_Reader(self))

    def shutdown(self) -> None:
        """End what is under way, from any thread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """One of its users is done with it."""
        self._users -= 1
        if self._users == 0:
            self._sock.close()


class _Reader(io.RawIOBase):
    def __init__(self, sock: TimedSocket) -> None:
        super().__init__()
        self._timed = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        return self._timed.receive_into(buffer)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._timed.close()


class Connection(http.client.HTTPConnection):
    """A connection to one origin. Call `begin` before each request."""

    def __init__(self, scheme: str, host: str, port: int | None) -> None:
        self._tls = scheme == "https"
        self.default_port = 443 if self._tls else 80
        super().__init__(host, port)
        self._deadline, self._budget = 0.0, 0
        self._connecting: socket.socket | None = None
        self._aborted = False

    def begin(self, deadline: float, budget: int) -> None:
        """The next request and its answer end at `deadline` and take at most `budget` bytes."""
        self._deadline, self._budget = deadline, budget
        if self.sock is not None:
            timed = cast(TimedSocket, self.sock)
            timed.deadline, timed.budget = deadline, budget

    def connect(self) -> None:
        """Connect, to the first address that takes us. OSError when none does before the deadline."""
        error: OSError = OSError("the name has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(self.host, self.port, 0, socket.SOCK_STREAM):
            try:
                sock = self._connected(socket.socket(family, kind, protocol), address)
            except OSError as failed:
                error = failed
                if self._aborted or time.monotonic() >= self._deadline:
                    break
                continue
            self.sock = TimedSocket(sock, self._deadline, self._budget)
            return
        raise error

    def _connected(self, sock: socket.socket, address: object) -> socket.socket:
        self._connecting = sock
        try:
            if self._aborted:
                raise ConnectionAbortedError("stopped")
            sock.settimeout(time_left(self._deadline))
            sock.connect(address)  # type: ignore[arg-type]
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                context = ssl.create_default_context()
                wrapped = context.wrap_socket(sock, server_hostname=self.host, do_handshake_on_connect=False)
                self._connecting = sock = wrapped
                wrapped.settimeout(time_left(self._deadline))
                wrapped.do_handshake()
        except BaseException:
            sock.close()
            raise
        finally:
            self._connecting = None
        return sock

    def abort(self) -> None:
        """End what is under way, from any thread; the connection is of no use after."""
        self._aborted = True
        timed, connecting = cast(TimedSocket | None, self.sock), self._connecting
        if timed is not None:
            timed.shutdown()
        if connecting is not None:
            with contextlib.suppress(OSError):
                connecting.shutdown(socket.SHUT_RDWR)

    def ask(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Send a request; the answer's head. OSError or HTTPException when none comes, UnsendableRequest when it can't be sent."""
        try:
            self.request(method, target, body, headers)
        except (http.client.InvalidURL, UnicodeError, ValueError) as error:
            raise UnsendableRequest(f"{type(error).__name__}: {error}") from error
        return self.getresponse()


def time_left(deadline: float) -> float:
    """Seconds until `deadline`. TimeoutError when it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
