"""Bridge from ASGI to WSGI: the environment of a request, and the response in pieces."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import unquote_to_bytes

Scope = MutableMapping[str, Any]
Environ = dict[str, Any]
WSGIApplication = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

PIECE = 256 * 1024


def environ_of(scope: Scope) -> Environ:
    """The WSGI environment (PEP 3333) of an ASGI request, without its body.

    A header with `_` in its name is omitted: in the environment it would be indistinguishable from the one with `-`.
    """
    host, port = scope.get("server") or ("localhost", 80)
    client = scope.get("client") or ("", 0)
    raw_path = scope.get("raw_path")
    path = unquote_to_bytes(raw_path) if raw_path is not None else scope["path"].encode()
    environ: Environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": path.decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": str(host),
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": str(client[0]),
        "REMOTE_PORT": str(client[1]),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in scope["headers"]:
        key = name.decode("latin-1")
        if "_" in key:
            continue
        key = key.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        text = value.decode("latin-1")
        if key in environ:
            text = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{text}"
        environ[key] = text
    return environ


@dataclass(slots=True)
class Answer:
    """Response of the application: status and headers, the first piece of the body, and the rest (None if complete)."""

    status: int
    headers: list[tuple[bytes, bytes]]
    first: bytes
    rest: Rest | None


class Rest:
    """The pieces of a response after the first. Must be closed."""

    def __init__(self, pieces: Iterator[bytes], close: Callable[[], object]) -> None:
        self._pieces = pieces
        self._close = close
        self._lock = threading.Lock()

    def next(self) -> bytes:
        """The next piece of about `PIECE` bytes; empty at the end."""
        with self._lock:
            return _take(self._pieces)

    def close(self) -> None:
        """Close the response, after the piece that another thread is producing."""
        with self._lock:
            self._close()


def call(application: WSGIApplication, environ: Environ, body: IO[bytes]) -> Answer:
    """Call `application` in this thread. A short response is complete and closed on return."""
    head: list[tuple[int, list[tuple[bytes, bytes]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
        # ASGI requires lower-case names
        pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        head[:] = [(int(status.split(" ", 1)[0]), pairs)]

    result = application({**environ, "wsgi.input": body}, start_response)
    close: Callable[[], object] = getattr(result, "close", lambda: None)
    try:
        pieces = iter(result)
        first = _take(pieces)
        whole = len(first) < PIECE
    except BaseException:
        close()
        raise
    status, headers = head[0]
    if not whole:
        return Answer(status, headers, first, Rest(pieces, close))
    close()
    return Answer(status, headers, first, None)


def _take(pieces: Iterator[bytes]) -> bytes:
    taken: list[bytes] = []
    size = 0
    for piece in pieces:
        taken.append(piece)
        size += len(piece)
        if size >= PIECE:
            break
    return taken[0] if len(taken) == 1 else b"".join(taken)
