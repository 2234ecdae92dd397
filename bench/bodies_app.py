"""The applications of `bench.bodies`: one that keeps its body, behind the front and by itself."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "byteor.settings")

from byteor.server.front import Front

PIECE = 1024 * 1024
DIRECTORY = Path(os.environ["BENCH_BODIES"])


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Read the body in pieces of 1 MiB; but at `/read`, do with them what an upload does: hash them (SHA-256), write them to a file."""
    size, digest = 0, hashlib.sha256()
    if environ["PATH_INFO"] == "/read":
        while piece := environ["wsgi.input"].read(PIECE):
            size += len(piece)
        return _answered(size, start_response)
    with tempfile.TemporaryFile(dir=DIRECTORY) as file:
        while piece := environ["wsgi.input"].read(PIECE):
            size += len(piece)
            digest.update(piece)
            file.write(piece)
    return _answered(size, start_response)


def _answered(size: int, start_response: Callable[..., Any]) -> Iterable[bytes]:
    answer = str(size).encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]


asgi = Front(wsgi, refused=lambda environ: False, directory=DIRECTORY)


async def spooled(scope: Any, receive: Any, send: Any) -> None:
    """The lower bound of keeping a body in a file before it is read: written as it comes, on the event loop, and read back. No thread,
    no bound, no deadline."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    size, more = 0, True
    with tempfile.TemporaryFile(dir=DIRECTORY) as file:
        while more:
            message = await receive()
            file.write(message.get("body", b""))
            more = message.get("more_body", False)
        file.seek(0)
        while piece := file.read(PIECE):
            size += len(piece)
    answer = str(size).encode()
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
