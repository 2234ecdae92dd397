"""A small real HTTP server that speaks the agent protocol and serves whatever a test wants it to."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.runtime.making import AGENT, ENVIRONMENT, ORG, PROJECT, Maker


class ControlPlane:
    """`desired` is what polls answer; `bundles` what downloads give; `reports` and `beats` what the agent sent.

    `key_set_version` is what it speaks of, `key_sets` the envelopes that it gives whatever is asked for. An iterator in place of
    an archive or of the envelopes is sent as it comes, without a length, until the other side hangs up. Downloads are answered
    with the status `refuse_bundles` while there is one.
    """

    def __init__(self, maker: Maker, port: int = 0) -> None:
        self.maker = maker
        self.desired: dict[str, Any] | None = None
        self.bundles: dict[str, bytes | Iterator[bytes]] = {}
        self.key_sets: list[dict[str, Any]] | Iterator[bytes] = []
        self.key_set_version = 1
        self.reports: list[dict[str, Any]] = []
        self.beats: list[dict[str, Any]] = []
        self.refuse_keys = False
        self.refuse_bundles: int | None = None
        self.clock_ahead = 0.0
        self.release: dict[str, Any] | None = None
        self.program = b""
        self.asked: list[str] = []
        self.port = port
        self._server: ThreadingHTTPServer | None = None

    @property
    def environment_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/v1/orgs/{ORG}/projects/{PROJECT}/environments/{ENVIRONMENT}"

    def start(self) -> None:
        plane = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._serve()

            def do_POST(self) -> None:
                self._serve()

            def _serve(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", "0") or 0))
                status, body = plane.answer(self.path, json.loads(raw) if raw else None)
                if isinstance(body, Iterator):
                    self._pour(status, body)
                    return
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)) if status != 204 else "0")
                self.end_headers()
                if status != 204:
                    self.wfile.write(data)

            def _pour(self, status: int, pieces: Iterator[bytes]) -> None:
                self.send_response(status)
                self.send_header("Connection", "close")
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    for piece in pieces:
                        self.wfile.write(piece)

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string(time.time() + plane.clock_ahead)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def offer(self, desired: dict[str, Any], archive: bytes | None = None) -> None:
        """Want `desired` from now on, serving `archive` for its deployment."""
        if archive is not None:
            self.bundles[desired["directive"]["deployment_id"]] = archive
        self.desired = desired

    def _state(self) -> dict[str, Any]:
        return {"desired": self.desired, "url": None, "heartbeat_seconds": 1, "key_set_version": self.key_set_version}

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append(path)
        if self.refuse_keys:
            return 401, {"code": "invalid_token", "detail": "no"}
        if path.endswith(f"/environments/{ENVIRONMENT}/agents"):
            return 201, {
                "agent_id": AGENT,
                "api_key": "byt_agt_test",
                "org_id": ORG,
                "project_id": PROJECT,
                "environment_id": ENVIRONMENT,
                "posture": "dev",
                "signing_keys": self.maker.key_set(),
                "heartbeat_seconds": 1,
            }
        if path.endswith("/heartbeat"):
            self.beats.append(body)
            return 200, self._state() if self.desired else {**self._state(), "desired": None}
        if "/deployment?" in path:
            after = int(path.rsplit("after=", 1)[1])
            if self.desired and self.desired["directive"]["directive_seq"] > after:
                return 200, self._state()
            threading.Event().wait(0.05)
            return 204, b""
        if path.endswith("/bundle") and self.refuse_bundles is not None:
            return self.refuse_bundles, {"code": "refused", "detail": "no bundle now"}
        if path.endswith("/bundle"):
            archive = self.bundles.get(path.split("/")[-2])
            return (200, archive) if archive is not None else (404, {"code": "not_found"})
        if path.endswith("/status"):
            self.reports.append({**body, "to": path.split("/")[-2]})
            return 200, {}
        if path.endswith("/release"):
            return (200, {"envelope": self.release}) if self.release else (204, b"")
        if path.endswith("/release/byteor-agent.pyz"):
            return 200, self.program
        if "/signing-keys" in path:
            if isinstance(self.key_sets, Iterator):
                return 200, self.key_sets
            return 200, {"version": self.key_set_version, "keys": [], "envelopes": self.key_sets}
        return 404, {"code": "not_found", "detail": path}
