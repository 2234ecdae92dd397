"""Running a verified bundle over records: from a file or a local HTTP port, to a file or a URL."""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from apps.runtime.agent.state import State
from apps.runtime.bundle import VerifiedBundle
from apps.runtime.interpreter import Interpreter, Outcome, SettingsError
from apps.runtime.spec.plan import Plan

MAX_RECORD_BYTES = 4 * 1024 * 1024
IDLE_SECONDS = 0.05


class ActivationError(Exception):
    """The pipeline can't be started here: a code and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")


class Limits:
    """What this host allows, whatever is sent: a data folder, URL prefixes of egress. Nothing can widen it."""

    def __init__(self, data_dir: Path | None, egress_urls: tuple[str, ...] = ()) -> None:
        self.data_dir = data_dir.resolve() if data_dir else None
        self.egress_urls = egress_urls

    def path(self, text: str) -> Path:
        """`text` as a path below the data folder. Raises ActivationError `path_not_allowed`."""
        if self.data_dir is None:
            raise ActivationError("path_not_allowed", "this agent has no --data-dir")
        path = (self.data_dir / text).resolve()
        if not path.is_relative_to(self.data_dir) or path == self.data_dir:
            raise ActivationError("path_not_allowed", "the path leads out of the data folder")
        return path

    def url(self, text: str) -> str:
        """`text` if this host sends there. Raises ActivationError `url_not_allowed`."""
        for allowed in self.egress_urls:
            if text == allowed or text.startswith(allowed.rstrip("/") + "/"):
                return text
        raise ActivationError("url_not_allowed", "this agent was not started with --allow-egress for that URL")


class _FileEgress:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("ab")

    def send(self, record: bytes) -> None:
        self._file.write(record + b"\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


class _HttpEgress:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=10)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def send(self, record: bytes) -> None:
        self._connection.request("POST", self._path, record, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        response.read(65536)
        if response.status >= 300:
            raise OSError(f"egress answered {response.status}")

    def flush(self) -> None:
        """Each record was sent as it came."""

    def close(self) -> None:
        self._connection.close()


class _NoEgress:
    def send(self, record: bytes) -> None:
        """Nowhere to send to."""

    def flush(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is open."""


class Pipeline:
    """A running bundle. Records come out in the order they came in; a file's position is kept across restarts, so that a
    record is processed at least once and, short of a crash, exactly once."""

    def __init__(self, bundle: VerifiedBundle, limits: Limits, state: State, say: Callable[[str], None]) -> None:
        self.bundle = bundle
        self._state = state
        self._say = say
        self._stop = threading.Event()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._server: ThreadingHTTPServer | None = None
        self.error: str | None = None
        self.refusals: deque[str] = deque(maxlen=20)
        try:
            self._interpreter = Interpreter(Plan.from_dict(bundle.plan), bundle.config.get("stages", {}))
        except SettingsError as error:
            raise ActivationError("bad_settings", str(error)) from error
        except ValueError as error:
            raise ActivationError("bad_plan", str(error)) from error
        adapters = bundle.config.get("adapters", {})
        self._ingress: Mapping[str, Any] | None = adapters.get("ingress")
        egress = adapters.get("egress")
        self._input: Path | None = None
        if self._ingress is not None and self._ingress["type"] == "file":
            self._input = limits.path(self._ingress["path"])
        self._egress_path = limits.path(egress["path"]) if egress and egress["type"] == "file" else None
        self._egress_url = limits.url(egress["url"]) if egress and egress["type"] == "http" else None
        self._egress: _FileEgress | _HttpEgress | _NoEgress = _NoEgress()

    def start(self) -> None:
        """Open the adapters and begin. Raises ActivationError when one can't be opened."""
        try:
            if self._egress_path is not None:
                self._egress = _FileEgress(self._egress_path)
            elif self._egress_url is not None:
                self._egress = _HttpEgress(self._egress_url)
            if self._ingress is not None and self._ingress["type"] == "http":
                self._server = self._listen(self._ingress)
                work: Callable[[], None] = self._server.serve_forever
            elif self._input is not None:
                work = self._follow
            else:
                return
        except OSError as error:
            raise ActivationError("adapter_failed", f"{type(error).__name__}: {error}") from error
        self._thread = threading.Thread(target=self._guarded, args=(work,), name="pipeline", daemon=True)
        self._thread.start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # it is the pipeline's end, told in the next heartbeat
            self.error = f"{type(error).__name__}: {error}"
            self._say(f"the pipeline stopped: {self.error}")

    def healthy(self) -> bool:
        """True while it runs (or idles, having nothing to read from)."""
        return self.error is None and (self._thread is None or self._thread.is_alive())

    def stats(self) -> dict[str, dict[str, int]]:
        """Counters by stage."""
        return dict(self._interpreter.stats())

    def stop(self) -> None:
        """Finish the record in hand, write everything out, end."""
        self._stop.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._thread is not None:
            self._thread.join(timeout=10)
        try:
            self._egress.close()
        except OSError as error:
            self._say(f"egress did not close: {error}")

    def _process(self, record: bytes) -> Outcome:
        with self._turn:
            outcome = self._interpreter.process(record)
            if outcome.emitted is not None:
                self._egress.send(outcome.emitted)
            elif outcome.refused is not None:
                self.refusals.append(f"{outcome.refused.stage}: {outcome.refused.code}")
            return outcome

    # --- file ---

    def _follow(self) -> None:
        assert self._input is not None
        assert self._ingress is not None
        follow = bool(self._ingress.get("follow", True))
        name = f"position-{self._input.name}.json"
        saved = self._state.read(name) or {}
        position = int(saved.get("position", 0)) if saved.get("path") == str(self._input) else 0
        while not self._stop.is_set():
            try:
                size = self._input.stat().st_size
            except FileNotFoundError:
                size = 0
            if size < position:
                position = 0
            if size > position:
                position = self._read_from(position, whole=not follow)
                self._state.write(name, {"path": str(self._input), "position": position})
            elif not follow:
                return
            self._stop.wait(IDLE_SECONDS)

    def _read_from(self, position: int, *, whole: bool) -> int:
        assert self._input is not None
        with self._input.open("rb") as source:
            source.seek(position)
            for _ in range(2000):
                line = source.readline(MAX_RECORD_BYTES + 1)
                if not line or self._stop.is_set():
                    break
                if not line.endswith(b"\n"):
                    if len(line) > MAX_RECORD_BYTES:
                        raise ValueError(f"a record has more than {MAX_RECORD_BYTES} bytes")
                    if not whole:
                        break
                record = line.rstrip(b"\r\n")
                if record:
                    self._process(record)
                position += len(line)
        self._egress.flush()
        return position

    # --- HTTP ---

    def _listen(self, ingress: Mapping[str, Any]) -> ThreadingHTTPServer:
        pipeline, path = self, str(ingress.get("path", "/"))

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_POST(self) -> None:
                if self.path != path:
                    self._answer(404, b'{"code": "not_found"}')
                    return
                length = self.headers.get("Content-Length", "")
                if not length.isdigit():
                    self._answer(411, b'{"code": "length_required"}')
                elif int(length) > MAX_RECORD_BYTES:
                    self._answer(413, b'{"code": "body_too_large"}')
                else:
                    self._take(self.rfile.read(int(length)))

            def _take(self, record: bytes) -> None:
                try:
                    outcome = pipeline._process(record)
                    pipeline._egress.flush()
                except OSError:
                    self._answer(503, b'{"code": "egress_unavailable"}')
                    return
                if outcome.refused is not None:
                    self._answer(422, b'{"code": "%s"}' % outcome.refused.code.encode())
                else:
                    self._answer(202, b"{}")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Records are not log lines."""

        # only loopback: what else listens on this host is not the control plane's to say
        return ThreadingHTTPServer((str(ingress.get("host", "127.0.0.1")), int(ingress["port"])), Handler)


def settle(pipeline: Pipeline, seconds: float = 0.3) -> bool:
    """True when the pipeline is still well after a moment: the health check of an activation."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not pipeline.healthy():
            return False
        time.sleep(0.02)
    return pipeline.healthy()
