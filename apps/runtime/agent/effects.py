"""What `http_post` and `exec` do on this host, within its own limits.

An effect has happened once the receiver answered 2xx, or the program ended with 0. A receiver that answers 422, or a program
that ends with 65 (EX_DATAERR of sysexits.h), refuses this one record: it is counted as refused and goes no further. Anything
else is a failure: the record stays where it is and is tried again.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import selectors
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from apps.runtime.agent.limits import ActivationError, Limits
from apps.runtime.agent.poster import Poster
from apps.runtime.agent.processes import Guard
from apps.runtime.ops.effects import EffectFailed, EffectRefused

POST_SECONDS = 15.0
EXEC_SECONDS = 30.0
MAX_OUTPUT_BYTES = 64 * 1024
MAX_LOG_BYTES = 256 * 1024
EX_DATAERR = 65
_PLAIN_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
_guard = Guard()


class HostEffects:
    """The effects of one pipeline. `stop()` ends what is under way and refuses what comes after, from any thread."""

    def __init__(self, limits: Limits, state_dir: Path, variables: Mapping[str, str]) -> None:
        self._limits = limits
        #: A moment of the monotonic clock after which no caller waits for an effect; None: as long as each may take.
        self.until: float | None = None
        self._log = state_dir / "exec.log"
        self._environment = {**_PLAIN_ENVIRONMENT, "HOME": str(limits.data_dir or "/"), **variables}
        self._stopping = threading.Event()
        self._turn = threading.Lock()
        self._wake = os.pipe()
        os.set_blocking(self._wake[0], False)
        self._poster = Poster()

    def stop(self) -> None:
        """End what is under way."""
        if not self._stopping.is_set():
            self._stopping.set()
            with contextlib.suppress(OSError):
                os.write(self._wake[1], b"!")
            self._poster.stop()

    def close(self) -> None:
        """Let go of what `stop` left open. Nothing may be under way."""
        self._poster.close()
        for number in self._wake:
            with contextlib.suppress(OSError):
                os.close(number)

    # --- http_post ---

    def http_post(self, url: str, body: bytes) -> None:
        """POST the record to `url`. See Effects."""
        self._permit(lambda: self._limits.check_post(url))
        try:
            status = self._poster.post(url, body, self._seconds(POST_SECONDS))
        except (OSError, http.client.HTTPException) as error:
            raise EffectFailed("post_failed", f"http_post: no answer ({type(error).__name__})") from error
        if status == 422:
            raise EffectRefused("post_refused", "The receiver answered 422.")
        if not 200 <= status < 300:
            raise EffectFailed("post_failed", f"http_post: the receiver answered {status}")

    def _permit(self, check: Callable[[], None]) -> None:
        if self._stopping.is_set():
            raise EffectFailed("stopping", "the pipeline is being stopped")
        try:
            check()
        except ActivationError as error:
            # what was allowed when the pipeline started is so no more: a program that went away
            raise EffectFailed(error.code, str(error)) from error

    def _seconds(self, most: float) -> float:
        return most if self.until is None else max(0.0, min(most, self.until - time.monotonic()))

    # --- exec ---

    def exec(self, argv: tuple[str, ...], body: bytes) -> None:
        """Run the program with the record on its standard input. See Effects."""
        self._permit(lambda: self._limits.check_exec(argv))
        with self._turn:
            code = self._run(argv, body)
        if code == EX_DATAERR:
            raise EffectRefused("exec_refused", f"The program ended with {EX_DATAERR}.")
        if code != 0:
            raise EffectFailed("exec_failed", f"exec: the program ended with {code}")

    def _run(self, argv: tuple[str, ...], body: bytes) -> int:
        try:
            process = _guard.start(argv, cwd=self._limits.data_dir or Path("/"), environment=self._environment)
        except (OSError, subprocess.SubprocessError) as error:
            raise EffectFailed("exec_failed", f"exec: it can't be started: {error}") from error
        output = b""
        try:
            output = self._exchange(process, body)
        finally:
            # nothing that it started stays behind; a program that was done has only its exit code left
            code = _guard.end(process)
            _close(process)
            self._note(argv[0], code, output)
        return code

    def _exchange(self, process: subprocess.Popen[bytes], body: bytes) -> bytes:
        """Write `body` and read its output until it ends. Raises EffectFailed when it takes too long or prints too much, or on `stop`."""
        assert process.stdin is not None
        assert process.stderr is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stderr.fileno(), False)
        output, view = bytearray(), memoryview(body)
        ended = os.pidfd_open(process.pid)
        seconds = self._seconds(EXEC_SECONDS)
        deadline = time.monotonic() + seconds
        try:
            with selectors.DefaultSelector() as waiting:
                waiting.register(process.stdin, selectors.EVENT_WRITE)
                waiting.register(process.stderr, selectors.EVENT_READ)
                waiting.register(ended, selectors.EVENT_READ)
                waiting.register(self._wake[0], selectors.EVENT_READ)
                while True:
                    ready = {key.fileobj for key, _ in waiting.select(max(0.0, deadline - time.monotonic()))}
                    if self._stopping.is_set():
                        raise EffectFailed("stopping", "exec: ended, the pipeline is being stopped")
                    if not ready:
                        raise EffectFailed("exec_timeout", f"exec: the program took more than {seconds:.0f} s")
                    if process.stdin in ready:
                        view = _written(process.stdin, view)
                        if not view:
                            waiting.unregister(process.stdin)
                            with contextlib.suppress(BrokenPipeError):
                                process.stdin.close()
                    if process.stderr in ready and not _more(process.stderr, output):
                        waiting.unregister(process.stderr)
                    if ended in ready:
                        _more(process.stderr, output)
                        return bytes(output)
        finally:
            os.close(ended)

    def _note(self, program: str, code: int, output: bytes) -> None:
        """Keep its output on this host, in a file of its own: it may contain data of records."""
        if not output:
            return
        with contextlib.suppress(OSError):
            if self._log.exists() and self._log.stat().st_size > MAX_LOG_BYTES:
                self._log.replace(self._log.with_suffix(".log.1"))
            handle = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(handle, "ab") as out:
                out.write(f"--- {time.time():.0f} {program} ended with {code}\n".encode() + output[:8192] + b"\n")


def _written(stdin: IO[bytes], view: memoryview) -> memoryview:
    try:
        return view[os.write(stdin.fileno(), view[:65536]) :]
    except BlockingIOError:
        return view
    except BrokenPipeError:
        return view[:0]  # it reads no more; its exit code decides whether that was well


def _more(stderr: IO[bytes], output: bytearray) -> bool:
    """Take what is there; False at the end. Raises EffectFailed beyond the cap."""
    while True:
        try:
            piece = os.read(stderr.fileno(), 65536)
        except BlockingIOError:
            return True
        if not piece:
            return False
        output += piece
        if len(output) > MAX_OUTPUT_BYTES:
            raise EffectFailed("exec_output", f"exec: the program wrote more than {MAX_OUTPUT_BYTES} bytes of errors")


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
