"""Waits that end with their server."""

from __future__ import annotations

import signal
import socket
import threading

from apps.agents.lane import flush
from apps.core import wake

_kept_open: list[socket.socket] = []


def end_waits_at_shutdown() -> None:
    """Let SIGTERM and SIGINT end every waiting poll of this process at once. Call it once, in the main thread;
    elsewhere (a development server that reloads itself) it does nothing.

    The server sets handlers of its own after it has loaded the application and then waits for the requests that
    run: so this hears of signals by the wake-up file descriptor, whoever handles them.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    heard, told = socket.socketpair()
    told.setblocking(False)
    _kept_open.extend((heard, told))
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        while number := heard.recv(1):
            if number[0] in (signal.SIGTERM, signal.SIGINT):
                wake.stop_all()
                # what agents said last; later ones are written as they come
                flush.end()
                return

    threading.Thread(target=listen, name="byteor-shutdown", daemon=True).start()
