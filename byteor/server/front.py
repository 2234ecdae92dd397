"""The ASGI application: receives bodies, waits and sends slow responses on the event loop, without holding a thread."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import structlog

from apps.api.problems import CONTENT_TYPE, InternalError, document, is_api_path
from apps.core import context, wake
from apps.core.context import RequestContext
from apps.core.db import is_full
from apps.core.errors import RequestTimeout, ServiceError, StorageFull, Unavailable
from apps.core.ids import new_id
from apps.core.processes import on_stop_signal
from apps.core.waits import SLOT, RecheckResult, Wait, WaitSlot
from byteor.server.bodies import Bodies, Body, BodyStorageFull, BodyTooSlow, ClientDisconnected, Message, Receive
from byteor.server.bridge import Answer, Environ, Rest, Scope, WSGIApplication, call, environ_of
from byteor.server.connections import Connections
from byteor.server.limits import Limits
from byteor.server.waiting import Looks, Waits

log = structlog.get_logger(__name__)

Send = Callable[[Message], Awaitable[None]]
P = ParamSpec("P")
T = TypeVar("T")


class Front:
    """Serves a WSGI application: bodies are read first, waits and slow readers hold no thread, and excess load is refused.

    `refused(environ)` is true if the application will refuse the request because of its headers; the body is then not read,
    the application responds without it, and the connection is closed. `directory` is for the temporary files of large bodies.
    `at_stop` is called in its own thread when the process is signalled to stop.
    """

    def __init__(
        self,
        application: WSGIApplication,
        *,
        refused: Callable[[Environ], bool],
        directory: Path,
        limits: Limits | None = None,
        address_of: Callable[[Environ], str] = lambda environ: str(environ["REMOTE_ADDR"]),
        at_stop: Callable[[], object] = lambda: None,
    ) -> None:
        self.limits = limits or Limits()
        self.connections = Connections(self.limits)
        self._application = application
        self._refused = refused
        self._address_of = address_of
        self._at_stop = at_stop
        self._threads = ThreadPoolExecutor(self.limits.threads, thread_name_prefix="byteor-web")
        self._body_threads = ThreadPoolExecutor(2, thread_name_prefix="byteor-body")
        self._bodies = Bodies(self.limits, directory, self._body_threads)
        self._waits: Waits | None = None
        self._woken: asyncio.Semaphore = asyncio.Semaphore(self.limits.waits_woken_at_once)
        self._looks = Looks(self.limits.waits_looked_at_once, self._in_thread)
        self._in_threads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            with self.connections.serving(scope.get("client")):
                await self._serve_safely(environ_of(scope), receive, send)

    # the process

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._start()
                await send({"type": "lifespan.startup.complete"})
            else:
                self.connections.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._waits = Waits(self.limits, loop)
        self.connections.start()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._chain(number, loop)
            on_stop_signal(self._end_at_last, keep_handlers=True)

    def _chain(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        """Add a signal handler next to the server's, which runs in the event loop and is triggered by the wake-up descriptor."""
        former = signal.getsignal(number)

        def stop(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.stop)
            if callable(former):
                former(number, frame)

        signal.signal(number, stop)

    def _end_at_last(self) -> None:
        """Exit the process after a grace period, even if requests are unfinished or clients do not read."""

        def end() -> None:
            log.warning("unfinished requests aborted at stop", running=self._in_threads)
            os._exit(0)

        timer = threading.Timer(self.limits.kill_seconds, end)
        timer.daemon = True
        timer.start()

    def stop(self) -> None:
        """Answer waiting requests, shorten body deadlines, and start no long work. Call it in the event loop."""
        if self._waits is not None:
            self._waits.stop()
        self._bodies.stop()

        def end() -> None:
            wake.stop_all()
            self._at_stop()

        threading.Thread(target=end, name="byteor-stop").start()

    @property
    def waiting(self) -> int:
        """Number of waiting requests."""
        return len(self._waits) if self._waits is not None else 0

    @property
    def open_bodies(self) -> int:
        """Number of incomplete bodies."""
        return self._bodies.count

    @property
    def bytes_in_files(self) -> int:
        """Bytes of bodies in temporary files, by their announced lengths."""
        return self._bodies.in_files

    def close(self) -> None:
        """Shut down the threads after their present work."""
        self.connections.close()
        self._threads.shutdown()
        self._body_threads.shutdown()

    # one request

    async def _serve_safely(self, environ: Environ, receive: Receive, send: Send) -> None:
        """Serve a request. Log an unhandled error, and answer it if no response has been started."""
        started: list[Message] = []

        async def watched(message: Message) -> None:
            started.append(message) if not started else None
            await send(message)

        try:
            await self._serve(environ, receive, watched)
        except Exception as error:
            log.error("unhandled error", path=environ["PATH_INFO"], exc_info=error)
            if not started:
                await self._refuse(environ, InternalError("An internal error occurred."), send)
            elif not any(name == b"content-length" for name, _ in started[0]["headers"]):
                raise  # otherwise the client can't detect the truncated response

    async def _serve(self, environ: Environ, receive: Receive, send: Send) -> None:
        if self._refused(environ):
            await self._work(environ, None, receive, send, close=True)
            return
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if not length:
            await self._work(environ, None, receive, send)
            return
        try:
            body = await self._bodies.read(receive, length=length, address=self._address_of(environ))
        except ClientDisconnected:
            return
        except BodyTooSlow:
            await self._refuse(environ, RequestTimeout("The body was not received in time."), send)
            return
        except BodyStorageFull:
            overloaded = Unavailable("No space to receive the body; try again.", code="overloaded", retry_after=5)
            await self._refuse(environ, overloaded, send)
            return
        except OSError as error:
            if not is_full(error):
                raise
            await self._refuse(environ, StorageFull("Storage is full; nothing was stored."), send)
            return
        try:
            await self._work(environ, body, receive, send)
        finally:
            await body.close()

    async def _work(
        self, environ: Environ, body: Body | None, receive: Receive, send: Send, *, close: bool = False
    ) -> None:
        """Answer with the application's response, at once or after a wait."""
        slot = environ[SLOT] = WaitSlot()
        answer = await self._call(environ, body)
        if answer is None:
            error = Unavailable("Too many requests at once; try again.", code="overloaded", retry_after=1)
            await self._refuse(environ, error, send, close=close)
        elif slot.wait is None:
            await self._give(answer, receive, send, close=close)
        else:
            await self._keep(environ, slot, slot.wait, answer, receive, send)

    async def _call(self, environ: Environ, body: Body | None) -> Answer | None:
        """The application's response, produced in a thread; None when too many requests wait for a thread."""
        if self._in_threads >= self.limits.threads + self.limits.queue:
            return None
        return await self._in_thread(call, self._application, environ, body.reader() if body else io.BytesIO())

    async def _in_thread(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        self._in_threads += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments, **named))
        finally:
            self._in_threads -= 1

    async def _keep(
        self, environ: Environ, slot: WaitSlot, wait: Wait, answer: Answer, receive: Receive, send: Send
    ) -> None:
        """Answer when the application has news, or with the last `answer` at the end of `wait`."""
        waits = self._waits
        assert waits is not None, "the lifespan startup has not run"
        if not waits.enter(wait.holder):
            answer.headers.append((b"retry-after", str(wait.retry_after).encode()))
            slot.answered(answer.status)
            await self._give(answer, receive, send)
            return
        disconnected = asyncio.ensure_future(_disconnect(receive))
        try:
            found = await _unless(disconnected, self._until_new(environ, slot, wait, answer, waits))
        finally:
            waits.leave(wait.holder)
            disconnected.cancel()
        if found is not None:
            await self._give(found, receive, send)

    async def _until_new(self, environ: Environ, slot: WaitSlot, wait: Wait, answer: Answer, waits: Waits) -> Answer:
        """The response to send: `answer` at the end of the wait. `slot` is that of the view's last call."""
        deadline = asyncio.get_running_loop().time() + wait.seconds
        latest = wait
        while await waits.wait_until_notified(latest, deadline):
            seen = wake.ticket(latest.channel)
            result = (
                await self._looks.again(latest.recheck, latest.subject) if latest.recheck else RecheckResult.CALL_VIEW
            )
            if result is RecheckResult.NOTHING_NEW:
                latest = replace(latest, seen=seen)
                continue
            if isinstance(result, bytes):
                answer = _with_json(answer, result)
                break
            slot = WaitSlot(kept=slot.kept)
            async with self._woken:
                answer = await self._in_thread(call, self._application, {**environ, SLOT: slot}, io.BytesIO())
            if slot.wait is None:
                return answer
            latest = slot.wait
        slot.answered(answer.status)
        return answer

    async def _give(self, answer: Answer, receive: Receive, send: Send, *, close: bool = False) -> None:
        headers = [*answer.headers, (b"connection", b"close")] if close else answer.headers
        start = {"type": "http.response.start", "status": answer.status, "headers": headers}
        if answer.rest is None:
            await send(start)
            await send({"type": "http.response.body", "body": answer.first})
            return
        disconnected = asyncio.ensure_future(_disconnect(receive))
        try:
            await send(start)
            await _unless(disconnected, self._stream(answer.first, answer.rest, send))
        finally:
            disconnected.cancel()
            await self._in_thread(answer.rest.close)

    async def _stream(self, piece: bytes, rest: Rest, send: Send) -> None:
        """Produce each piece in a thread, and send it without holding one."""
        while piece:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await self._in_thread(rest.next)
        await send({"type": "http.response.body", "body": b""})

    async def _refuse(self, environ: Environ, error: ServiceError, send: Send, *, close: bool = True) -> None:
        """Answer with `error` without the application. `close` when part of the request is unread."""
        request_id, path = str(new_id()), str(environ["PATH_INFO"].encode("latin-1").decode(errors="replace"))
        kind, text = "text/plain; charset=utf-8", f"{error.detail}\n"
        if is_api_path(path):
            with context.serving(RequestContext(request_id=request_id)):
                kind, text = CONTENT_TYPE, json.dumps(document(error, path), ensure_ascii=False)
        log.info(
            "request", method=environ["REQUEST_METHOD"], status=error.status, request_id=request_id, code=error.code
        )
        content = text.encode()
        headers = {
            **error.headers,
            "content-type": kind,
            "content-length": str(len(content)),
            "x-request-id": request_id,
        }
        if close:
            headers["connection"] = "close"
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": error.status, "headers": pairs})
        await send({"type": "http.response.body", "body": content})


def _with_json(answer: Answer, document: bytes) -> Answer:
    """Turn an empty `answer` into a 200 with this body."""
    content = [(b"content-type", b"application/json"), (b"content-length", str(len(document)).encode())]
    kept = [(name, value) for name, value in answer.headers if name not in (b"content-type", b"content-length")]
    return Answer(200, [*kept, *content], document, None)


async def _disconnect(receive: Receive) -> None:
    """Wait until the client disconnects. Skips the rest of the request, such as an empty body."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless(disconnected: asyncio.Future[None], work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`; None if the client disconnects first."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({disconnected, task}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
