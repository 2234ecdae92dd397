"""The web server's application in this process: what `run_web` serves, without sockets, on an event loop in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from django.core.wsgi import get_wsgi_application
from django.db import connection

from apps.core import wake
from apps.core.waits import SLOT, Recheck, RecheckResult, WaitSlot
from byteor.middleware.requests import body_refusal
from byteor.server.bridge import Environ, WSGIApplication
from byteor.server.front import Front
from byteor.server.limits import Limits


@dataclass
class Answer:
    """What came back; status 0 when nothing did."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """One request under way: its body can come in pieces, and its client can hang up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answer = Answer()
        self.reading = threading.Event()
        self.reading.set()
        self.done: Future[None] | None = None

    def send(self, piece: bytes, *, more: bool) -> None:
        self._put({"type": "http.request", "body": piece, "more_body": more})

    def hang_up(self) -> None:
        self._put({"type": "http.disconnect"})

    def _put(self, message: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._inbox.put_nowait, message)

    def result(self, seconds: float = 30) -> Answer:
        """The answer when it is complete."""
        assert self.done is not None
        self.done.result(seconds)
        return self.answer

    async def receive(self) -> dict[str, Any]:
        return await self._inbox.get()

    async def deliver(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.answer.status = message["status"]
            self.answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        self.answer.body += message.get("body", b"")
        while not self.reading.is_set():
            await asyncio.sleep(0.01)


class Served:
    """Calls to the application, from any thread."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="served", daemon=True)
        self._thread.start()
        self._life = Exchange(self._loop)
        self._life.send(b"", more=False)
        self._run(self._begin_life()).result(30)

    async def _begin_life(self) -> None:
        begun = asyncio.Event()
        messages = iter([{"type": "lifespan.startup"}])

        async def receive() -> Any:
            return next(messages, None) or await asyncio.Event().wait()

        async def send(message: Any) -> None:
            begun.set()

        self._living = asyncio.ensure_future(self.front({"type": "lifespan"}, receive, send))
        await begun.wait()

    def _run(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def begin(
        self,
        method: str,
        path: str,
        token: str = "",
        body: bytes | None = b"",
        *,
        headers: Mapping[str, str] | None = None,
        address: str = "127.0.0.1",
        reading: bool = True,
    ) -> Exchange:
        """Start a request. With `body=None` its body follows by `Exchange.send`, its length by `headers`."""
        path, _, query = path.partition("?")
        given = {"host": "testserver", "content-type": "application/json", **(headers or {})}
        if token:
            given["authorization"] = f"Bearer {token}"
        if body:
            given["content-length"] = str(len(body))
        exchange = Exchange(self._loop)
        if not reading:
            exchange.reading.clear()
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
            "client": (address, 1),
            "server": ("127.0.0.1", 80),
        }
        if body is not None:
            exchange.send(body, more=False)
        exchange.done = self._run(self.front(scope, exchange.receive, exchange.deliver))
        return exchange

    def call(self, method: str, path: str, token: str = "", body: bytes = b"", **headers: str) -> Answer:
        """The answer to a request that is complete."""
        return self.begin(method, path, token, body, headers=headers).result()

    def until(self, true: Callable[[], bool]) -> None:
        """Until it is true; AssertionError after 20 s."""
        deadline = time.monotonic() + 20
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def until_waiting(self, count: int) -> None:
        """Until so many polls wait."""
        self.until(lambda: self.front.waiting == count)

    def stop(self) -> None:
        """What SIGTERM does."""
        self._loop.call_soon_threadsafe(self.front.stop)

    def close(self) -> None:
        self.stop()

        async def end() -> None:
            self._living.cancel()
            await asyncio.sleep(0.05)

        self._run(end()).result(30)
        self.front.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()
        wake.close()


def closing(application: WSGIApplication) -> WSGIApplication:
    """`application`, whose threads keep no database connection: the test's database is dropped at its end."""

    @functools.cache
    def closing_recheck(recheck: Recheck) -> Recheck:
        def looked(subjects: Sequence[Any]) -> Sequence[bytes | RecheckResult]:
            try:
                return recheck(subjects)
            finally:
                connection.close()

        return looked

    def call(environ: Environ, start_response: Callable[..., Any]) -> Any:
        slot: WaitSlot = environ[SLOT]
        try:
            return application(environ, start_response)
        finally:
            connection.close()
            if slot.wait is not None and slot.wait.recheck is not None:
                slot.wait = replace(slot.wait, recheck=closing_recheck(slot.wait.recheck))

    return call


@contextlib.contextmanager
def serving(limits: Limits | None = None, application: WSGIApplication | None = None) -> Iterator[Served]:
    """The product (or another `application`) as it is served, with these limits."""
    with tempfile.TemporaryDirectory(prefix="byteor-served-") as directory:
        front = Front(
            closing(application or get_wsgi_application()),
            refused=lambda environ: body_refusal(environ) is not None,
            directory=Path(directory),
            limits=limits,
        )
        served = Served(front)
        try:
            yield served
        finally:
            served.close()
