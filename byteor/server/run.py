"""Start of the web server."""

from __future__ import annotations

import os
import socket

from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels

from byteor.server.limits import Limits

SERVER_PID = "BYTEOR_SERVER_PID"
"""Environment variable with the parent's process id for a server process."""
IDLE_SECONDS = 30
IDLE_SECONDS_BEHIND_PROXY = 90
"""Time for each request head of a connection; longer than proxies keep connections open."""


def require_free(host: str, port: int) -> None:
    """Raise OSError if `host:port` is in use. Granian itself would not: it binds with SO_REUSEPORT."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def serve(host: str, port: int, *, behind_proxy: bool) -> None:
    """Serve `byteor.asgi` on `host:port` until SIGTERM or SIGINT; a server process that dies is replaced.

    Raises OSError when the port is taken. The server process ends with this one, however this one ends.
    """
    require_free(host, port)
    limits = Limits.of_this_process()
    os.environ[SERVER_PID] = str(os.getpid())
    idle = IDLE_SECONDS_BEHIND_PROXY if behind_proxy else IDLE_SECONDS
    Granian(
        "byteor.asgi:application",
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=idle * 1000, max_buffer_size=limits.head_bytes),
        websockets=False,
        backlog=4096,
        backpressure=limits.connections,
        respawn_failed_workers=True,
        log_level=LogLevels.warning,
        # granian's log lines use the same configuration
        log_dictconfig={"loggers": {"_granian": {"handlers": [], "propagate": True}}},
    ).serve()
